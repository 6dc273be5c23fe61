"""Mixture of block: every query token attends to its own block and to the blocks that suit it, block shape by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import Permutation, attend_grid
from genkit.attention.grid_blocks import share_of_all
from genkit.attention.keep import kept
from genkit.attention.method import Density, check_amount, check_choice, check_int, check_number, check_used
from genkit.attention.mixture_of_block.select import (
    SCOPES,
    block_means,
    gates,
    list_top_k,
    select_threshold,
    select_top_k,
)
from genkit.attention.registry import register
from genkit.attention.scored import WithScale
from genkit.attention.site import Site
from genkit.attention.static import check_tokens
from genkit.errors import UsageError, explain
from genkit.kernels.block_lists import BlockLists, Kept
from genkit.kernels.token_select import token_select_attention
from genkit.layout import TokenLayout

KINDS = ("temporal", "spatial", "box")
_BLOCKS = {"temporal": 8, "spatial": 48, "box": 72}  # the paper's counts
_LEAST_TOKENS = 32


class Partition:
    """How the grid splits into blocks: tokens in block order, and where every block starts.

    Attributes:
        permutation: raster order to block order; blocks of whole frames change nothing.
        block_of: (N,) int64 block at every place. starts: C + 1 offsets. own: bool (N, C). kept: the same as ranges.
        sizes: (C,) float32, tokens of every block.
    """

    def __init__(self, grid: tuple[int, int, int], box: tuple[int, int, int]):
        steps = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
        counts = [-(-n // side) for n, side in zip(grid, box, strict=True)]
        number = torch.zeros(grid, dtype=torch.int64)
        for step, side, count in zip(steps, box, counts, strict=True):
            number = number * count + step // side
        number = number.reshape(-1)
        order = number.argsort(stable=True)
        self.permutation = Permutation(order)
        self.block_of = number[order]
        sizes = torch.bincount(number, minlength=math.prod(counts))
        self.starts = [0, *sizes.cumsum(0).tolist()]
        self.own = torch.nn.functional.one_hot(self.block_of, math.prod(counts)).bool()
        self.kept = Kept.of(self.block_of, self.block_of + 1, math.prod(counts))
        self.sizes = sizes.float()

    @property
    def blocks(self) -> int:
        """Number of blocks C."""
        return len(self.starts) - 1

    def to(self, device: torch.device) -> Partition:
        """The same partition with its tables on ``device``."""
        for name in ("permutation", "block_of", "own", "kept", "sizes"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def _auto_box(grid: tuple[int, int, int], kind: str) -> tuple[int, int, int]:
    """A box that cuts the grid into about the paper's number of blocks, never below 32 tokens; divisors preferred."""
    t, h, w = grid
    wanted = max(2, min(_BLOCKS[kind], math.prod(grid) // _LEAST_TOKENS))
    best, choice = math.inf, grid
    for ct in range(1, t + 1) if kind != "spatial" else [t]:
        for ch in range(1, h + 1) if kind != "temporal" else [h]:
            for cw in range(1, w + 1) if kind != "temporal" else [w]:
                counts = [-(-n // side) for n, side in zip(grid, (ct, ch, cw), strict=True)]
                ragged = sum(n % side != 0 for n, side in zip(grid, (ct, ch, cw), strict=True))
                shape = abs(math.log(ch / cw)) if kind != "temporal" else 0.0
                loss = abs(math.log(math.prod(counts) / wanted)) + 0.3 * shape + 0.5 * ragged
                if kind == "box":  # neither a piece of one frame nor all frames, where the grid allows it
                    loss += (0.6 if ct == 1 else 0.0) + (1.0 if 1 in (counts[0], counts[1] * counts[2]) else 0.0)
                if loss < best:
                    best, choice = loss, (ct, ch, cw)
    return choice


@register("mixture_of_block")
@dataclass(frozen=True)
class MixtureOfBlock(WithScale):
    """Every query token attends exactly to its own block of the grid and to the blocks whose mean key suits it best.

    Layers take turns between blocks of frames (temporal), of places through all frames (spatial) and of both (box). The
    choice is made per query token and head. Text and other extra tokens see everything and are seen by everything.

    Two presets: without training use the default, ``select="topk"`` per query, with the first quarter of the steps
    dense (:meth:`recommended`). For training use ``select="threshold", scope="head"``; without training that setting
    makes videos tremble. It pays on long sequences: choosing costs time too.

    Args:
        temporal: frames per temporal block; none = about 8 blocks.
        spatial: height and width of a spatial block; none = about 48 blocks.
        box: frames, height and width of a box block; none = about 72 blocks.
        cycle: how many temporal, spatial and box layers follow each other.
        first_layer: layer that begins the first cycle (the first one the schedule covers).
        select: ``"topk"`` keeps a fixed number of blocks, ``"threshold"`` as many as hold the share ``tau`` of the
            similarity.
        scope: who shares the budget: each ``"query"`` of a head, each ``"head"``, each ``"block"`` (over all queries
            and heads, threshold only), or ``"all"``.
        keep: blocks per query with ``"topk"``, own included: a number, or a share of the blocks.
        tau: share of the similarity with ``"threshold"``; published 0.25.
        max_density: cap on the share of (query, block) pairs that ``"threshold"`` may keep; none = no cap.

    Source: VMoBA: Mixture-of-Block Attention for Video Diffusion Models, arXiv 2506.23858.
    """

    temporal: int | None = field(default=None, metadata={"help": "frames per temporal block"})
    spatial: tuple[int, int] | None = field(default=None, metadata={"help": "height and width of a spatial block"})
    box: tuple[int, int, int] | None = field(default=None, metadata={"help": "frames, height, width of a box block"})
    cycle: tuple[int, int, int] = field(default=(1, 1, 1), metadata={"help": "temporal, spatial, box layers in turn"})
    first_layer: int = field(default=0, metadata={"help": "layer that begins the first cycle"})
    select: Literal["topk", "threshold"] = field(default="topk", metadata={"help": "how blocks are chosen"})
    scope: Literal["query", "block", "head", "all"] = field(default="query", metadata={"help": "who shares a budget"})
    keep: int | float = field(default=0.25, metadata={"help": "blocks per query: number or share"})
    tau: float = field(default=0.25, metadata={"help": "share of the similarity to reach"})
    max_density: float | None = field(default=0.5, metadata={"help": "cap of the threshold"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    source: ClassVar[str] = "VMoBA, arXiv 2506.23858"

    def __post_init__(self):
        super().__post_init__()
        owner = "mixture_of_block"
        for name in ("temporal", "spatial", "box"):
            value = getattr(self, name)
            for side in value if isinstance(value, tuple) else () if value is None else (value,):
                check_int(owner, name, side, 1)
        for count in self.cycle:
            check_int(owner, "cycle", count, 0)
        if sum(self.cycle) == 0:
            raise UsageError(explain(f"{owner}.cycle", self.cycle, "at least one layer of some kind"))
        check_int(owner, "first_layer", self.first_layer, 0)
        check_choice(owner, "select", self.select, ("topk", "threshold"))
        check_choice(owner, "scope", self.scope, SCOPES)
        if self.select == "topk" and self.scope == "block":
            raise UsageError(explain(f"{owner}.scope with topk", self.scope, ("query", "head", "all")))
        check_amount(owner, "keep", self.keep)
        check_number(owner, "tau", self.tau, 0, above=True)
        if self.max_density is not None:
            check_number(owner, "max_density", self.max_density, 0, 1, above=True)
        check_used(self, ("tau", "max_density"), self.select == "threshold", "select='threshold'")
        check_used(self, ("keep",), self.select == "topk", "select='topk'")

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`: unless heads share a budget."""
        return self.scope in ("query", "head")

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: every query takes blocks of each grid, its own place in each among them."""
        return True

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The first quarter of the steps dense, as in the paper's runs without training."""
        return {"steps": f"{math.ceil(steps / 4)}:"} if steps > 1 else {}

    def kind(self, layer: int) -> str:
        """The kind of blocks a layer uses."""
        place = (layer - self.first_layer) % sum(self.cycle)
        first, second, _ = self.cycle
        return KINDS[0] if place < first else KINDS[1] if place < first + second else KINDS[2]

    def block_box(self, grid: tuple[int, int, int], kind: str) -> tuple[int, int, int]:
        """Frames, height and width of a block of a kind on a concrete grid."""
        given = getattr(self, kind)
        if given is None:
            return _auto_box(grid, kind)
        box = {"temporal": lambda: (given, *grid[1:]), "spatial": lambda: (grid[0], *given), "box": lambda: given}[
            kind
        ]()
        return tuple(min(side, length) for side, length in zip(box, grid, strict=True))

    def blocks_kept(self, blocks: int) -> int:
        """Blocks per query with ``select="topk"`` when there are ``blocks``."""
        return min(blocks, self.keep if isinstance(self.keep, int) else max(1, round(self.keep * blocks)))

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        found = []
        for kind in KINDS:
            box = self.block_box(layout.grid, kind)
            count = math.prod(-(-n // side) for n, side in zip(layout.grid, box, strict=True))
            found.append(f"{kind} {' x '.join(map(str, box))} ({count} blocks)")
        return "blocks: " + ", ".join(found)

    def choose_blocks(self, q: torch.Tensor, k: torch.Tensor, part: Partition) -> torch.Tensor | BlockLists:
        """:meth:`select_blocks`, as lists where the choice is made on a GPU and every query has its own budget."""
        if q.device.type == "cpu" or self.select != "topk" or self.scope != "query":
            return self.select_blocks(q, k, part)
        gate = gates(q.detach(), block_means(k.detach(), part.block_of, part.own))
        return list_top_k(gate, part.kept, self.blocks_kept(part.blocks))

    def select_blocks(self, q: torch.Tensor, k: torch.Tensor, part: Partition) -> torch.Tensor:
        """bool (B, H, N, C): the blocks every query takes; q and k in block order."""
        gate = gates(q.detach(), block_means(k.detach(), part.block_of, part.own))
        if self.select == "topk":
            return select_top_k(gate, part.own, self.blocks_kept(part.blocks), self.scope)
        return select_threshold(gate, part.own, self.tau, self.scope, self.max_density)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; exact attention over the keys of the chosen blocks."""
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        part = kept(cache, _partition, self, site.layout.grid, self.kind(site.layer), device=q.device)

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = self.choose_blocks(q, k, part)
            cache.measure((self, site.name), lambda: _share(chosen, part, site.layout))
            # No query is without a block, since its own is always taken: nobody needs to look.
            return token_select_attention(
                q, k, v, chosen, part.starts, scale=site.scale, backend=cache.backend, allow_empty=True,
                most=self._most(part),
            )  # fmt: skip

        return attend_grid(q, k, v, site, cache, run, part.permutation)

    def _most(self, part: Partition) -> int:
        """Blocks of a query at most. Only where it does not share its budget there is a bound."""
        alone = self.select == "topk" and self.scope == "query"
        return self.blocks_kept(part.blocks) if alone else part.blocks

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """The tokens of the blocks that queries take; see :meth:`Method.pair_rows`."""
        part = kept(cache, _partition, self, site.layout.grid, self.kind(site.layer), device=q.device)
        start, stop = site.layout.grid_span
        moved = [x.detach()[:, start:stop].index_select(1, part.permutation.order) for x in (q, k)]
        chosen = self.select_blocks(*moved, part)
        cache.measure((self, site.name), lambda: _share(chosen, part, site.layout))
        inverse = part.permutation.inverse
        inside = (queries >= start) & (queries < stop)
        found = chosen.new_ones(*chosen.shape[:2], len(queries), site.layout.length)
        found[:, :, inside, start:stop] = chosen[:, :, inverse[queries[inside] - start]][..., part.block_of[inverse]]
        return found

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Density of the last call at the site; before any call, what top-k will keep, or None for a threshold."""
        share = cache.measured((self, site.name))
        if share is None:
            if self.select == "threshold":
                return None
            part = _partition(self, site.layout.grid, self.kind(site.layer))
            kept = self.blocks_kept(part.blocks) / part.blocks
            share = share_of_all(kept, site.layout)
        return Density(share, share)


def _partition(method: MixtureOfBlock, grid: tuple[int, int, int], kind: str) -> Partition:
    return Partition(grid, method.block_box(grid, kind))


def _share(chosen: torch.Tensor | BlockLists, part: Partition, layout: TokenLayout) -> torch.Tensor:
    """Share of all token pairs that a choice of blocks keeps, text included, as a scalar tensor."""
    if isinstance(chosen, BlockLists):
        used = torch.arange(chosen.index.shape[-1], device=chosen.index.device) < chosen.count[..., None]
        keys = part.sizes.index_select(0, chosen.index.flatten()).view(chosen.index.shape)
        kept = (keys * used).mean((0, 1)).sum()
    else:
        kept = (chosen.float().mean((0, 1)) @ part.sizes).sum()
    return share_of_all(kept / layout.grid_length**2, layout)
