"""Agent attention for image models (AgentSD) and its form for video transformers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from genkit.attention.agent.weights import AgentWeights, Positions
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import attend_grid, outside
from genkit.attention.keep import kept
from genkit.attention.method import Density, check_choice, check_int, check_number, check_used
from genkit.attention.registry import register
from genkit.attention.scored import WithScale
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens, dense_attention
from genkit.attention.token_merge import Merge, destinations, match
from genkit.attention.views import weights_by_values
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.kernels.agent import agent_attention
from genkit.layout import TokenLayout

Grid = tuple[int, int, int]


class Cells:
    """Cells of a grid that agents stand for.

    Attributes:
        cell_of: (N,) int64 cell of every token. sizes: (n,) float32 tokens per cell. centre: (n,) int64 token nearest
            to the middle of every cell.
    """

    def __init__(self, grid: tuple[int, int, int], cell: tuple[int, int, int]):
        index = [
            _cell_index(length, side, axis == 0) for axis, (length, side) in enumerate(zip(grid, cell, strict=True))
        ]
        counts = [int(part.max()) + 1 for part in index]
        t, h, w = torch.meshgrid(*index, indexing="ij")
        self.cell_of = ((t * counts[1] + h) * counts[2] + w).flatten()
        self.sizes = torch.bincount(self.cell_of).float()
        middle = [_middles(part) for part in index]
        t, h, w = torch.meshgrid(*middle, indexing="ij")
        self.centre = ((t * grid[1] + h) * grid[2] + w).flatten()

    def to(self, device: torch.device) -> Cells:
        """The same cells with their tables on ``device``."""
        for name in ("cell_of", "sizes", "centre"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def mean(self, q: torch.Tensor) -> torch.Tensor:
        """Mean of q (B, N, H, D) over every cell: (B, n, H, D)."""
        wide = q.to(torch.promote_types(q.dtype, torch.float32))
        sums = wide.new_zeros(q.shape[0], len(self.sizes), *q.shape[2:]).index_add(1, self.cell_of, wide)
        return (sums / self.sizes.to(wide.dtype)[:, None, None]).to(q.dtype)


def _cell_index(length: int, side: int, first_alone: bool) -> torch.Tensor:
    """Cell of every coordinate; over time the first frame is a cell of its own (it holds a single picture)."""
    at = torch.arange(length)
    return torch.where(at == 0, 0, (at - 1) // side + 1) if first_alone and length > 1 and side > 1 else at // side


def _middles(index: torch.Tensor) -> torch.Tensor:
    counts = torch.bincount(index)
    return counts.cumsum(0) - counts + counts // 2


class Destinations:
    """Tokens that others merge into, as a thing that can be kept per patch."""

    def __init__(self, chosen: torch.Tensor):
        self.chosen = chosen

    def to(self, device: torch.device) -> Destinations:
        """The same tokens on ``device``."""
        return Destinations(self.chosen.to(device))


def _cells(grid: tuple[int, int, int], cell: tuple[int, int, int]) -> Cells:
    return Cells(grid, cell)


def _positions(grid: Grid, cell: Grid, lattice: Grid, lines: Grid) -> Positions:
    cells = Cells(grid, cell)
    return Positions(grid, (cells.cell_of, cells.sizes), lattice, lines)


def _destinations(grid: tuple[int, int], cell: int, seed: int | None) -> Destinations:
    return Destinations(destinations(grid, (cell, cell), seed))


def downsample(site: Site) -> int:
    """Places of the finest grid per side of a token, as AgentSD estimates it: 1 at that grid, 2, 4, ... below."""
    finest = site.layout.grid if site.finest is None else site.finest
    return math.ceil(math.sqrt(math.prod(finest) // site.layout.grid_length))


@register("agent")
@dataclass(frozen=True)
class Agent(WithScale):
    """A few agent tokens read all keys, every query reads the agents: cost linear in the number of tokens.

    ``agents="cells"`` pools the queries of each cell of the grid; meant for video transformers, where it is
    experimental and best followed by fine-tuning. ``agents="merge"`` is AgentSD for Stable Diffusion UNets: similar
    tokens are merged, agents are what remains after much heavier merging; agents work in the early steps, plain merging
    in the later ones. Agents carry no fine detail: keep the later steps dense (:meth:`recommended`).

    ``form="trained"`` adds what the paper trains: biases of agents reading keys and of queries reading agents, by
    position, and a depth-wise convolution of the values. They start at zero, where the form is the training-free one,
    and are interpolated to any grid. The paper's own form has ``scale_power=1`` and ``shortcut=0``.

    Args:
        agents: ``"cells"`` or ``"merge"``.
        cell: frames, height and width of a cell; the first frame is alone in its cell. Cut to the grid for images.
        pool: how a cell's agent is made: ``"mean"`` of its queries, or the query at its ``"centre"``. Means of queries
            that carry rotary positions cancel their fast channels, so ``"auto"`` takes the centre except for the
            self-attention of single images without text (UNets).
        scale_power: the second softmax scale is the first to this power; smaller is sharper. Published 0.3.
        shortcut: weight of the values added to the output. Published 0.075.
        count_bias: add the logarithm of a cell's size to its agent's score.
        ratio: with ``"merge"``, share of tokens merged away.
        agent_ratio: with ``"merge"``, share of tokens merged away to make agents.
        early: with ``"merge"``, share of the steps that use agents; later ones merge by ``ratio`` alone, in cells of 2.
        max_downsample: with ``"merge"``, the coarsest level of a UNet that is merged, per side of its finest attention.
            Published 1: the finest only, at any size of the picture, which in Stable Diffusion 1 and 2 is that of the
            latents.
        min_tokens: with ``"merge"``, sequences shorter than this are left alone.
        seed: with ``"merge"``, choice of the tokens others merge into; -1 = the first of each cell, never random.
        form: ``"free"`` or ``"trained"`` (with ``agents="cells"``).
        lattice: trained form, agents that have stored biases, over frames, rows and columns; also the size of the map
            every one of them has over rows and columns. Published 7 x 7; frames are ours, 1 is enough for images.
        lines: trained form, stored lengths of the bias vectors over frames, rows and columns; as long as the grid, they
            have an entry for each of its places, as published. The score gets h * w + the sum of these more features:
            with 128 per head stay below 128.
        weights: safetensors file with trained weights, read when the patch is made.

    Source: Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874.
    """

    agents: Literal["cells", "merge"] = field(default="cells", metadata={"help": "pooled cells or merged tokens"})
    cell: tuple[int, int, int] = field(default=(3, 4, 4), metadata={"help": "frames x height x width of a cell"})
    pool: Literal["auto", "mean", "centre"] = field(default="auto", metadata={"help": "agent of a cell"})
    scale_power: float = field(default=0.3, metadata={"help": "exponent of the second softmax scale"})
    shortcut: float = field(default=0.075, metadata={"help": "weight of the added values"})
    count_bias: bool = field(default=False, metadata={"help": "add the logarithm of a cell's size"})
    ratio: float = field(default=0.4, metadata={"help": "share of tokens merged"})
    agent_ratio: float = field(default=0.95, metadata={"help": "share of tokens merged to make agents"})
    early: float = field(default=0.4, metadata={"help": "share of the steps with agents"})
    max_downsample: int = field(default=1, metadata={"help": "coarsest UNet level merged; 1 = the finest only"})
    min_tokens: int = field(default=0, metadata={"help": "shortest sequence to merge"})
    seed: int = field(default=0, metadata={"help": "choice of merge destinations; -1 = fixed"})
    form: Literal["free", "trained"] = field(default="free", metadata={"help": "with trained biases and convolution"})
    lattice: tuple[int, int, int] = field(default=(3, 7, 7), metadata={"help": "agents with stored biases"})
    lines: tuple[int, int, int] = field(default=(8, 32, 32), metadata={"help": "lengths of stored bias vectors"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    variants: ClassVar[tuple[dict, ...]] = ({}, {"agents": "merge"}, {"form": "trained"})
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    source: ClassVar[str] = "Agent Attention, arXiv 2312.08874"

    def __post_init__(self):
        super().__post_init__()
        check_choice("agent", "agents", self.agents, ("cells", "merge"))
        check_choice("agent", "pool", self.pool, ("auto", "mean", "centre"))
        check_choice("agent", "count_bias", self.count_bias, (True, False))
        for side in self.cell:
            check_int("agent", "cell", side, 1)
        check_choice("agent", "form", self.form, ("free", "trained"))
        for name in ("lattice", "lines"):
            for side in getattr(self, name):
                check_int("agent", name, side, 1)
        if self.form == "trained" and self.agents == "merge":
            raise UsageError("agent.form='trained' has biases by position, merged agents have none; use agents='cells'")
        if self.form == "free" and self.weights is not None:
            raise UsageError("agent.weights: form='free' has no trained weights; use form='trained'")
        check_int("agent", "max_downsample", self.max_downsample, 1)
        check_int("agent", "min_tokens", self.min_tokens, 0)
        check_int("agent", "seed", self.seed, -1)
        merging = ("ratio", "agent_ratio", "early", "min_tokens", "max_downsample", "seed")
        check_used(self, merging, self.agents == "merge", "agents='merge'")
        check_used(self, ("cell", "pool", "count_bias"), self.agents == "cells", "agents='cells'")
        check_used(self, ("lattice", "lines"), self.form == "trained", "form='trained'")
        for name, low, high in (("scale_power", 0, 4), ("shortcut", -10, 10), ("ratio", 0, 1), ("agent_ratio", 0, 1),
                                ("early", 0, 1)):  # fmt: skip
            check_number("agent", name, getattr(self, name), low, high)

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """Cells: the first 40 % of the steps, all but the first and last two layers. Merging plans its own steps."""
        if self.agents == "merge":
            return {}
        return {"steps": f":{max(1, round(0.4 * steps))}", "layers": "2:-2" if layers > 4 else "0:"}

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; merging is for single images without text in the sequence."""
        reason = super().why_not(site)
        if reason is None and self.agents == "merge" and (site.layout.grid[0] > 1 or len(site.layout.segments) > 1):
            reason = "agent with agents='merge' is for the self-attention of single images; use agents='cells'"
        return reason

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        if self.agents == "merge":
            return f"merges {self.ratio:.0%} of the tokens, agents from merging {self.agent_ratio:.0%}"
        count = len(Cells(layout.grid, self._cell(layout)).sizes)
        text = f"{count} agents for {layout.grid_length} tokens, {2 * count / layout.grid_length:.1%} of dense work"
        rank = self.lattice[1] * self.lattice[2] + sum(self.lines)
        return text if self.form == "free" else f"{text}; trained biases of {rank} features more"

    def _cell(self, layout: TokenLayout) -> tuple[int, int, int]:
        return tuple(min(side, length) for side, length in zip(self.cell, layout.grid, strict=True))

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Trained form: make the layer's weights."""
        if self.form == "trained":
            own = AgentWeights(place, self.lattice, self.lines)
            PatchWeights.of(cache).put(self.name, place.name, own, self.settings())
        return ()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`. Declines where agents would not save work."""
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        scale = q.shape[-1] ** -0.5 if site.scale is None else site.scale
        run = self._merged if self.agents == "merge" else self._pooled
        return run(q, k, v, site, cache, scale)

    def _pooled(self, q, k, v, site: Site, cache: PatchCache, scale: float) -> torch.Tensor | None:
        layout = site.layout
        cells = kept(cache, _cells, layout.grid, self._cell(layout), device=q.device)
        if 2 * len(cells.sizes) >= layout.grid_length:
            return None
        options = {"scale": scale, "read_scale": scale**self.scale_power, "shortcut": self.shortcut}
        own = PatchWeights.of(cache).at(self.name, site.name) if self.form == "trained" else None
        if own is not None:
            key = (layout.grid, self._cell(layout), self.lattice, self.lines)
            factors = own.factors(kept(cache, _positions, *key, device=q.device), q.device)
            options |= dict(zip(("gather_factors", "read_factors"), factors, strict=True))
        if layout.length == layout.grid_length:
            options["read_bias"] = cells.sizes.log()[None, None, None] if self.count_bias else None
        else:
            extra_k, extra_v = (self._per_query_head(outside(x, site), q) for x in (k, v))
            options["read_bias"] = self._read_bias(cells, site, q)
            options |= {"extra_k": extra_k * (scale / options["read_scale"]), "extra_v": extra_v}

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
            k, v = (self._per_query_head(x, q) for x in (k, v))
            agents = cells.mean(q) if self._means(site) else q.index_select(1, cells.centre)
            out = agent_attention(q, k, v, agents, **options)
            return (out if own is None else out + own.local(v, layout.grid)), None

        return attend_grid(q, k, v, site, cache, run)

    def _means(self, site: Site) -> bool:
        """Whether an agent is the mean of its cell's queries, rather than the one at its centre."""
        return self.pool == "mean" or (
            self.pool == "auto" and site.role in ("self", "spatial") and site.layout.grid[0] == 1
        )

    def _per_query_head(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Keys or values with one head per query head, as the shortcut and the extra keys need them."""
        return x if x.shape[2] == q.shape[2] else x.repeat_interleave(q.shape[2] // x.shape[2], 2)

    def _read_bias(self, cells: Cells, site: Site, q: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores of [agents, tokens outside the grid]: sizes of cells, hidden text keys."""
        if site.key_mask is None and not self.count_bias:
            return None
        others = site.layout.length - site.layout.grid_length
        sizes = cells.sizes.log() if self.count_bias else torch.zeros_like(cells.sizes)
        text = q.new_zeros(q.shape[0], others, dtype=torch.float32)
        if site.key_mask is not None:
            text = text.masked_fill(~outside(site.key_mask, site), -torch.inf)
        return torch.cat([sizes.expand(q.shape[0], -1), text], 1)[:, None, None]

    def merge_plan(self, features: torch.Tensor, site: Site, cache: PatchCache) -> tuple[Merge, Merge | None]:
        """How a sequence with features (B, N, C) merges, and how its agents do (None = no agents in this step)."""
        early = site.step is None or site.steps is None or site.step < round(self.early * site.steps)
        seed = None if self.seed < 0 else (self.seed * 1_000_003 + (site.step or 0)) * 1_009 + site.layer
        cell = 4 if early else 2
        chosen = kept(cache, _destinations, site.layout.grid[1:], cell, seed, device=features.device).chosen
        tokens = features.shape[1]
        merge = match(features, chosen, int(tokens * self.ratio))
        agents = merge.with_count(int(tokens * (self.agent_ratio if early else 0.5)))
        return merge, agents if 2 * agents.length < merge.length else None

    def _merged(self, q, k, v, site: Site, cache: PatchCache, scale: float) -> torch.Tensor | None:
        tokens = q.shape[1]
        if tokens < max(self.min_tokens, 16) or downsample(site) > self.max_downsample:
            return None
        merge, heavier = self.merge_plan(k.flatten(2), site, cache)
        queries, keys, values = (merge.apply(x) for x in (q, k, v))
        if heavier is None:
            out = dense_attention(queries, keys, values, scale, None)
        else:
            keys = self._per_query_head(keys, q)
            out = agent_attention(
                queries, keys, self._per_query_head(values, q), heavier.apply(q), scale=scale,
                read_scale=scale**self.scale_power, shortcut=self.shortcut,
            )  # fmt: skip
        return merge.undo(out, tokens)

    def seen(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """The weights that queries end up giving keys, 1 = a row's largest; see :meth:`Method.seen`.

        Read off :meth:`attend` itself, with one value channel per key and without the shortcut.
        """
        plain = dataclasses.replace(self, shortcut=0.0, **self._untrained())

        def run(value: torch.Tensor) -> torch.Tensor:
            out = plain.attend(q, k, value, site, cache)
            if out is None:
                raise UnsupportedError(
                    f"agents save no work on the grid {'x'.join(map(str, site.layout.grid))} with these settings, so "
                    f"dense attention runs; draw a larger grid or larger cells"
                )
            return out

        return weights_by_values(run, q)

    def _untrained(self) -> dict[str, Any]:
        """Settings of the same agents without trained weights, for any length."""
        if self.agents == "merge":
            return {"min_tokens": 0}
        return {"form": "free", "weights": None, "lattice": (3, 7, 7), "lines": (8, 32, 32)}

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Work relative to dense attention as a share of pairs; no pair is hidden, the weights are of low rank."""
        if self.agents == "merge":
            return None
        layout = site.layout
        count, grid, total = len(Cells(layout.grid, self._cell(layout)).sizes), layout.grid_length, layout.length
        if 2 * count >= grid:
            return Density(1.0, 1.0, dense=True)
        share = (2 * grid * count + total**2 - grid**2) / total**2
        return Density(share, share)
