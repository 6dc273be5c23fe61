"""What a picture of a method shows: how much of every key a query reads, by the layout alone or with drawn data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method
from genkit.attention.scored import WithBias, bias_rows
from genkit.attention.site import Site
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.layout import TokenLayout

HEADS, WIDTH = 4, 64  # of drawn queries and keys
MOST_DRAWN = 6144  # tokens; methods that decide by the data are drawn from a full (N, N) table


@dataclass(frozen=True)
class View:
    """What to draw of a method on a layout.

    Args:
        rows: queries (n,) int64 -> (n, N) float64 from 0 (hidden) to 1 (read in full).
        density: of the method here, None = not known.
        note: where queries and keys came from; "" when the layout alone decides.
        weights: whether the numbers are attention weights (1 = the row's largest) rather than visible or not.
        reads: with weights: how a query comes to them, in words.
    """

    rows: Callable[[torch.Tensor], torch.Tensor]
    density: Density | None
    note: str = ""
    weights: bool = False
    reads: str = "weighs every token"


def view_of(method: Method, layout: TokenLayout, seed: int = 0, layer: int = 0) -> View:
    """The view of a method on a layout.

    Args:
        seed: of the queries and keys that a method which decides by the data is drawn with. They are smooth random
            fields over the grid: near tokens are alike, as in a model.
        layer: layer whose attention is drawn, for methods whose layers differ.

    Raises:
        UnsupportedError: the method does not work on the self or joint attention of this layout. UsageError: too many
            tokens for a method that decides by the data.
    """
    site = dataclasses.replace(Site.of_layout(layout, heads=HEADS), layer=layer, layers=max(1, layer + 1))
    if not {"self", "joint"} & set(method.roles):
        raise UnsupportedError(
            f"{method.name} works on {', '.join(method.roles)} attention, pictures are of self and joint attention; "
            f"genkit generate with it prints what ran, docs/methods/{method.name}.md tells what it computes"
        )
    if site.role not in method.roles:
        remedy = "leave the text tokens out" if layout.text_span else "add text tokens"
        raise UnsupportedError(f"{method.name} works on {', '.join(method.roles)} attention: {remedy}")
    method.require(site)
    cache = PatchCache()
    bias = method.bias_spec if isinstance(method, WithBias) else None
    if not method.by_data and bias is not None:
        note = "weights that equal scores get: the bias alone, the mean of what heads give"
        note += "; nothing is learned yet" if bias.trains else ""

        def weights(queries: torch.Tensor) -> torch.Tensor:
            weight = bias_rows(bias, layout, queries, HEADS).exp().mean(0)
            return method.shares(layout, queries, HEADS) * weight

        return View(weights, method.density(site, cache), note, weights=True, reads="weighs keys by their distance")
    if not method.by_data:
        return View(lambda queries: method.shares(layout, queries, HEADS), method.density(site, cache))
    if layout.length > MOST_DRAWN:
        allowed = f"at most {MOST_DRAWN} for {method.name}, which decides by queries and keys"
        raise UsageError(explain("tokens", layout.length, allowed, "draw a smaller grid"))
    q, k = (fields(layout, seed, part) for part in (0, 1))
    seen = method.seen(q, k, site, cache).double()
    density = method.density(site, cache)
    note = f"queries and keys drawn at random (smooth over the grid, seed {seed}, {HEADS} heads, layer {layer})"
    return View(lambda queries: seen[queries], density, note, method.weighs)


def fields(layout: TokenLayout, seed: int, part: int) -> torch.Tensor:
    """Drawn queries (part 0) or keys (part 1), (1, N, heads, width): plane waves over the grid, the same for both, and
    noise of their own; heads look closer and closer. Tokens outside the grid are noise."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.cartesian_prod(*(torch.linspace(0, 1, n) for n in layout.grid))
    reach = torch.linspace(2.0, 5.0, HEADS)[:, None, None]
    waves = torch.randn(HEADS, 3, WIDTH, generator=draw) * reach
    phase = torch.rand(HEADS, 1, WIDTH, generator=draw) * 2 * torch.pi
    smooth = (torch.cos(place @ waves + phase) * 2**0.5).transpose(0, 1)
    noise = torch.Generator().manual_seed(2 * seed + 1 + part)
    found = torch.randn(1, layout.length, HEADS, WIDTH, generator=noise)
    start, stop = layout.grid_span
    found[:, start:stop] = smooth[None] + 0.5 * found[:, start:stop]
    return found


def weights_by_values(run: Callable[[torch.Tensor], torch.Tensor], q: torch.Tensor) -> torch.Tensor:
    """The weights that queries end up giving keys, (N, N), 1 = a row's largest, negative ones as 0; mean over heads.

    Args:
        run: attention of values (1, N, H, D), linear in them. q: (1, N, H, D), for its sizes. One value channel per
            key, D keys a call.
    """
    tokens, heads, width = q.shape[1:]
    found = []
    for begin in range(0, tokens, width):
        value = torch.zeros(1, tokens, heads, width)
        count = min(width, tokens - begin)
        value[0, begin : begin + count, :, :count] = torch.eye(count)[:, None]
        found.append(run(value)[0].mean(1)[:, :count])
    weights = torch.cat(found, 1).clamp(min=0)
    return weights / weights.amax(1, keepdim=True).clamp(min=1e-30)
