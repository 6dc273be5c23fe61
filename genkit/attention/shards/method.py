"""S2-Attention: every head reads the blocks around its own and every n-th block of the rest, each head other ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.grid_blocks import GridBlocks, auto_across
from genkit.attention.method import Density, check_int
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.static import StaticMethod, StaticPlan, executed_share
from genkit.errors import UsageError, explain
from genkit.kernels.permutation import Strips, TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import Rule
from genkit.layout import GRID, TokenLayout

_OWNER = "shards"


@register(_OWNER)
@dataclass(frozen=True)
class Shards(StaticMethod):
    """A head reads the blocks near its own, and of the others one shard: every ``stride``-th; heads have other shards.

    The heads of a layer together see every block if there are at least ``stride`` of them. For training with it (a LoRA
    on long clips): heads of a trained model have roles of their own, and lose by it what they looked at. Text and other
    extra tokens see everything and are seen by everything. The mask is known from the layout.

    Args:
        stride: shards; a head reads one of them. 1 = dense. Published 8 (Phi-3-small) and others.
        local: blocks up to this far from a block, steps along all axes added up, are read by every head. 0 = its own.
        block: tokens per block.
        across: frames and rows across the strips that blocks are cut from; none = blocks about as long on every axis;
            ``1x1`` = runs of the sequence, as published.
        offset: added to the number of a head; it decides which shard is whose.
        turn: the shards of a layer's heads are those of the layer before moved by one, so that few heads see everything
            in ``stride`` layers. Off: the same in all layers, as published.

    Source: S2-Attention: Hardware-Aware Context Sharding Among Attention Heads, arXiv 2407.17678; boxes of the grid and
    the turn by layer are this project's.
    """

    stride: int = field(default=4, metadata={"help": "shards; a head reads one of them"})
    local: int = field(default=1, metadata={"help": "blocks up to this far away are read by every head"})
    block: int = field(default=64, metadata={"help": "tokens per block"})
    across: tuple[int, int] | None = field(
        default=None, metadata={"help": "frames and rows across the strips that blocks are cut from"}
    )
    offset: int = field(default=0, metadata={"help": "added to the number of a head"})
    turn: bool = field(default=True, metadata={"help": "shards move on by one from layer to layer"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_head: ClassVar[bool] = True
    source: ClassVar[str] = "S2-Attention, arXiv 2407.17678"

    def __post_init__(self):
        super().__post_init__()
        for name, low, high in (("stride", 1, 4096), ("local", 0, 4096), ("block", 8, 4096), ("offset", 0, 4096)):
            check_int(_OWNER, name, getattr(self, name), low, high)
        if not isinstance(self.turn, bool):
            raise UsageError(explain(f"{_OWNER}.turn", self.turn, "true or false"))
        if self.across is not None:
            if not isinstance(self.across, tuple) or len(self.across) != 2:
                raise UsageError(explain(f"{_OWNER}.across", self.across, "two numbers: frames and rows"))
            for side in self.across:
                check_int(_OWNER, "across", side, 1)

    def at_layer(self, layer: int) -> Shards:
        """The same with the heads' shards of one layer."""
        return replace(self, offset=(self.offset + layer) % self.stride, turn=False) if self.turn else self

    def strips(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        """Frames and rows across the strips on a concrete grid."""
        frames, rows = self.across or auto_across(grid, self.block)
        return min(frames, grid[0]), min(rows, grid[1])

    def kinds(self, heads: int) -> torch.Tensor:
        """(heads,) int64: the shard that each head reads, 0 to ``stride - 1``, in layer 0."""
        return (torch.arange(heads) + self.offset) % self.stride

    def blocks(self, layout: TokenLayout) -> torch.Tensor:
        """bool (stride, M, M): the blocks of the grid that heads of each kind read."""
        return _blocks(layout.grid, self.block, self.strips(layout.grid), self.stride, self.local)

    def build_plan(
        self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None, heads: int = 4
    ) -> StaticPlan:
        """The plan of a layout for ``heads`` heads; see :meth:`StaticMethod.build_plan`."""
        seen = self.blocks(layout)[self.kinds(heads)]
        if key_mask is None and bool(seen.all()):
            return StaticPlan(None, Density(1.0, 1.0, dense=True))
        pieces = [(segment.name, segment.length) for segment in layout.segments]
        frames, rows = self.strips(layout.grid)
        order = TokenOrder.from_strips(layout.grid, Strips((frames, rows, None)), self.block, pieces)
        inside = torch.cat(
            [torch.full((-(-length // self.block),), name == GRID) for name, length in pieces if length]
        )  # fmt: skip
        kept = torch.ones(heads, len(inside), len(inside), dtype=torch.bool)
        kept[:, inside.nonzero(), inside.nonzero()[:, 0]] = seen
        rule = None if key_mask is None else Rule.everything(layout.length, layout.length).hide_keys(key_mask.cpu())
        plan = BlockPlan.from_dense_blocks(
            kept[None], layout.length, layout.length, block_q=self.block, block_k=self.block, rule=rule, order=order
        )
        wanted = self.shares(layout, torch.arange(layout.length), heads).mean().item()
        return StaticPlan(plan, Density(wanted, executed_share(plan)))

    def _attend(self, q, k, v, site: Site, cache: PatchCache, pairs=None):
        own = self.at_layer(site.layer)
        return super(Shards, own)._attend(q, k, v, site, cache, pairs)

    def density(self, site: Site, cache: PatchCache) -> Density:
        """See :meth:`Method.density`."""
        own = self.at_layer(site.layer)
        return super(Shards, own).density(site, cache)

    def arrangement(self, layout: TokenLayout, kind: str = "cpu") -> str:
        """See :meth:`StaticMethod.arrangement`."""
        frames, rows = self.strips(layout.grid)
        return "" if (frames, rows) == (1, 1) else f"strips of {frames} frames and {rows} rows"

    def shares(self, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """See :meth:`Method.shares`; heads of layer 0."""
        weight = torch.bincount(self.kinds(heads), minlength=self.stride).double() / heads
        return self._of_tokens((weight[:, None, None] * self.blocks(layout)).sum(0), layout, queries)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`: what heads of any kind see; O(n N) memory."""
        return self._of_tokens(self.blocks(layout).any(0), layout, queries)

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.pair_rows`: every head its own, at the site's layer."""
        own = self.at_layer(site.layer)
        kinds = own.kinds(site.all_heads or q.shape[2])[site.first_head : site.first_head + q.shape[2]]
        by_kind = [own._of_tokens(seen, site.layout, queries.cpu()) for seen in own.blocks(site.layout)]
        return torch.stack(by_kind)[kinds][None].to(q.device)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The pairs visible to heads of any kind, bool (N, N). O(N^2) memory."""
        return self.mask_rows(layout, torch.arange(layout.length))

    def masks(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs by kind of heads, bool (stride, N, N). O(N^2) memory."""
        every = torch.arange(layout.length)
        return torch.stack([self._of_tokens(seen, layout, every) for seen in self.blocks(layout)])

    def _of_tokens(self, seen: torch.Tensor, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """(n, N) of what pairs of blocks (M, M) have, all ones outside the grid."""
        start, stop = layout.grid_span
        frames, rows = self.strips(layout.grid)
        walk = Strips((frames, rows, None)).walk(layout.grid)
        block = torch.empty_like(walk)
        block[walk] = torch.arange(len(walk)) // self.block
        found = seen.new_ones(len(queries), layout.length)
        inside = (queries >= start) & (queries < stop)
        found[inside, start:stop] = seen[block[queries[inside] - start]][:, block]
        return found

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        count = math.ceil(layout.grid_length / self.block)
        near = self.blocks(layout).all(0).double().mean().item() if self.stride > 1 else 1.0
        together = f"{self.stride} heads, or fewer over {self.stride} layers," if self.turn else f"{self.stride} heads"
        return (
            f"{count} blocks of {self.block} tokens, {near:.0%} read by every head, of the others one in "
            f"{self.stride};  {together} see all"
        )


@lru_cache(maxsize=64)
def _blocks(grid: tuple[int, int, int], block: int, across: tuple[int, int], stride: int, local: int) -> torch.Tensor:
    """bool (stride, M, M); shared: not to be written to."""
    found = GridBlocks(grid, block, across)
    # runs of the sequence lie on one line, whatever rows and frames they cross
    places = torch.arange(found.count)[:, None] if across == (1, 1) else found.places
    near = (places[:, None] - places).abs().sum(-1) <= local
    shard = (places.sum(-1) + torch.arange(stride)[:, None]) % stride == 0
    return near | shard[:, None]
