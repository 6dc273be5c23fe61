"""From a bias by name to what operators take: places of tokens, exact tables, factors of low rank with their error.

Tokens outside the grid (text, reference, keyframes) are exempt: nothing is added where one of them asks or is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from genkit.attention.biases import BiasSpec, Distance, Grid, Svd, Tables
from genkit.errors import UsageError
from genkit.kernels import LowRank, Quadratic, Table
from genkit.kernels.plan.bias import Bias
from genkit.layout import TokenLayout

#: Columns that a tile of the GPU kernels holds; tables of more places stay tables there, which other backends take.
_MOST_RANK = 64
_ROUNDING = 1e-12  # of a bias, below which an error is none


class TokenPlaces:
    """Where the tokens of a call lie on the grid.

    Attributes:
        grid: tokens per axis. at: (N, 3) int64 coordinates; those of tokens outside the grid mean nothing.
        inside: (N,) bool, whether a token is of the grid.
    """

    def __init__(self, grid: Grid, at: torch.Tensor, inside: torch.Tensor):
        self.grid, self.at, self.inside = grid, at, inside

    @classmethod
    def of_layout(cls, layout: TokenLayout) -> TokenPlaces:
        """All tokens of a layout."""
        start, stop = layout.grid_span
        at = torch.zeros(layout.length, 3, dtype=torch.int64)
        at[start:stop] = coordinates(layout.grid)
        inside = torch.zeros(layout.length, dtype=torch.bool)
        inside[start:stop] = True
        return cls(layout.grid, at, inside)

    @classmethod
    def of_order(cls, grid: Grid, order: torch.Tensor) -> TokenPlaces:
        """The grid's tokens in another order, (N,) int64 raster numbers."""
        order = order.cpu()
        return cls(grid, coordinates(grid)[order], torch.ones(len(order), dtype=torch.bool))

    def to(self, device: torch.device) -> TokenPlaces:
        """The same with its tables on ``device``."""
        self.at, self.inside = self.at.to(device), self.inside.to(device)
        return self

    def apart(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates of queries and keys (N, 3), those of exempt tokens farther from all others than any table
        reaches."""
        sides = torch.tensor(self.grid, device=self.at.device)
        outside = ~self.inside[:, None]
        return self.at.where(~outside, -sides), self.at.where(~outside, 2 * sides - 1)


def coordinates(grid: Grid) -> torch.Tensor:
    """(T*H*W, 3) int64 place of every grid token."""
    return torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, 3)


@dataclass(frozen=True)
class Split:
    """A bias as factors.

    Args:
        factors: per axis (F, G), each (heads|1, n, R): ``F G^T`` stands for the axis' table of all pairs of places.
        rank: of all axes together. full: places of all axes, which is the rank of the exact factors.
        error: largest difference from the exact bias, in logits.
    """

    factors: tuple[tuple[int, torch.Tensor, torch.Tensor], ...]
    rank: int
    full: int
    error: float


def split_tables(tables: Tables, grid: Grid, svd: Svd | None = None) -> Split:
    """Factors of the tables of a bias; see :class:`BiasSpec` for the tables.

    Exact without ``svd``: then one factor picks a row of the table of all pairs of places. With it the truncated
    singular value decomposition of every head and axis, the axes' ranks raised one by one, that with the largest
    error first, until the whole error is small enough or the rank is reached. No gradient flows through that.
    """
    found = {axis: _pairs(table, grid[axis]) for axis, table in enumerate(tables) if table is not None}
    full = sum(grid[axis] for axis in found)
    if svd is None:
        exact = tuple(
            (axis, pairs, torch.eye(grid[axis], dtype=pairs.dtype, device=pairs.device)[None])
            for axis, pairs in found.items()
        )
        return Split(exact, full, full, 0.0)
    parts = {axis: torch.linalg.svd(pairs.detach().double().cpu()) for axis, pairs in found.items()}
    ranks = dict.fromkeys(found, 0)

    def left(axis: int) -> torch.Tensor:
        u, s, v = parts[axis]
        r = ranks[axis]
        return found[axis].detach().double().cpu() - u[..., :r] * s[:, None, :r] @ v[:, :r]

    rest = {axis: left(axis) for axis in found}
    enough = max(svd.error or 0.0, _ROUNDING * _largest(rest))
    # The axes' places are independent of each other, so the largest sum is the sum of the largest.
    while (error := _largest(rest)) > enough or sum(ranks.values()) == 0:
        open_axes = [axis for axis in found if ranks[axis] < grid[axis]]
        if not open_axes or (svd.rank is not None and sum(ranks.values()) == svd.rank):
            break
        worst = max(open_axes, key=lambda axis: float(rest[axis].abs().max()))
        ranks[worst] += 1
        rest[worst] = left(worst)
    factors = []
    for axis, r in ranks.items():
        if r:
            u, s, v = parts[axis]
            root = s[:, None, :r].sqrt()
            like = found[axis]
            factors.append((axis, (u[..., :r] * root).to(like), (v[:, :r].mT * root).to(like)))
    return Split(tuple(factors), sum(ranks.values()), full, error)


def _pairs(table: torch.Tensor, n: int) -> torch.Tensor:
    """(heads|1, n, n) what an axis adds to every pair of places, from (heads|1, 2 n - 1)."""
    step = torch.arange(n, device=table.device)
    return table[:, step[:, None] - step + n - 1]


def _largest(rest: dict[int, torch.Tensor]) -> float:
    """Largest absolute value of the sum of what is left on the axes, over heads."""
    heads = max(each.shape[0] for each in rest.values())
    high = torch.stack([each.amax((1, 2)).expand(heads) for each in rest.values()]).sum(0)
    low = torch.stack([each.amin((1, 2)).expand(heads) for each in rest.values()]).sum(0)
    return float(torch.maximum(high.abs(), low.abs()).max())


@dataclass(frozen=True)
class TermRequest:
    """How operators want a bias.

    Args:
        heads: of the whole layer. first, count: those of the call.
        device, wide: where, and float32 or float64.
        pooled: keys are read as means too, which take factors alone.
    """

    heads: int
    first: int
    count: int
    device: torch.device
    wide: torch.dtype
    pooled: bool = False


def operator_terms(
    spec: BiasSpec, places: TokenPlaces, asked: TermRequest, weights: Mapping[str, torch.Tensor] | None = None
) -> tuple[Bias, ...]:
    """The bias of all tokens, as the one term that suits the device: a table on the CPU; on a GPU squared distances,
    or else factors as long as a tile holds them; factors for pooled keys and where an SVD was asked for.

    Raises:
        UsageError: gradients of weights through an SVD.
    """
    tables = spec.tables(places.grid, asked.heads, weights)
    tables = [None if table is None else _cut(table, asked).to(asked.device, asked.wide) for table in tables]
    rank = sum(n for n, table in zip(places.grid, tables, strict=True) if table is not None)
    on_gpu = asked.device.type != "cpu"
    if spec.svd is not None:
        if torch.is_grad_enabled() and any(table is not None and table.requires_grad for table in tables):
            raise UsageError(
                f"bias {spec}: no gradient of its weights goes through an SVD; train without '+{spec.svd}', and add it "
                f"for inference"
            )
        return (_low_rank(split_tables(tables, places.grid, spec.svd), places),)
    only = spec.terms[0]
    if on_gpu and not asked.pooled and len(spec.terms) == 1 and isinstance(only, Distance):
        return (_quadratic(only, places, asked, weights or {}),)
    if asked.pooled or (on_gpu and rank <= _MOST_RANK):
        return (_low_rank(split_tables(tables, places.grid), places),)
    found = {axis: table for axis, table in enumerate(tables) if table is not None}
    axes, (q_pos, k_pos) = list(found), places.apart()
    return (Table(tuple(found.values()), q_pos[:, axes], k_pos[:, axes]),)


def _cut(table: torch.Tensor, asked: TermRequest) -> torch.Tensor:
    return table if table.shape[0] == 1 else table[asked.first : asked.first + asked.count]


def _low_rank(split: Split, places: TokenPlaces) -> LowRank:
    """Factors of tokens from factors of places; zero for exempt tokens."""
    sides = []
    for left in (True, False):
        parts = [(f if left else g)[:, places.at[:, axis]] for axis, f, g in split.factors]
        heads = max(part.shape[0] for part in parts)
        side = torch.cat([part.expand(heads, -1, -1) for part in parts], -1)
        sides.append((side * places.inside[:, None]).transpose(0, 1)[None])
    return LowRank(*sides)


def _quadratic(
    term: Distance, places: TokenPlaces, asked: TermRequest, weights: Mapping[str, torch.Tensor]
) -> Quadratic:
    sigmas = {axis: sigma for axis, n in enumerate(places.grid) if (sigma := term.sigma(axis, n)) is not None}
    axes = list(sigmas)
    if term.learned:
        first = term.weights(asked.heads)
        rows = [weights.get(f"0.{'thw'[axis]}", first["thw"[axis]]) for axis in axes]
        weight = _cut(torch.stack(rows, 1), asked)
    else:
        weight = torch.tensor([[1 / (2 * sigma**2) for sigma in sigmas.values()]], dtype=torch.float64)
    at = places.at[:, axes].to(asked.wide)
    gain = places.inside.to(asked.wide)
    hinge = torch.tensor([term.free(axis) for axis in axes], device=asked.device, dtype=asked.wide)
    return Quadratic(at, at, weight.to(asked.device, asked.wide), hinge, gain, gain)


def block_means(tables: Tables, places: TokenPlaces, block: int) -> torch.Tensor:
    """(heads|1, M, M) mean bias of all pairs of two blocks of ``block`` neighbouring tokens; no gradient."""
    total: torch.Tensor | None = None
    count = -(-len(places.at) // block)
    number = torch.arange(len(places.at), device=places.at.device) // block
    for axis, table in enumerate(tables):
        if table is None:
            continue
        pairs = _pairs(table.detach(), places.grid[axis]).to(places.at.device)
        share = pairs.new_zeros(count, places.grid[axis])
        share.index_put_((number, places.at[:, axis]), share.new_ones(()), accumulate=True)
        share /= share.sum(1, keepdim=True)
        part = share @ pairs @ share.mT
        total = part if total is None else total + part
    assert total is not None  # a spec has a term, and a term an axis
    return total
