"""Radial attention: bands that narrow with the distance between frames, as one static block mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch

from genkit.attention.method import Density, check_choice, check_flag, check_int, check_number
from genkit.attention.radial.mask import BandRule, block_mask
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.static import StaticMethod, StaticPlan, executed_share
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import Rule
from genkit.layout import GRID, TokenLayout

NEAR = ("full", "half", "decay")
ROWS = ("frame", "block", "published")
_PAPER_BLOCK = 128
_BLOCKS_PER_FRAME = 8


@lru_cache(maxsize=64)
def _grid_mask(frames: int, bands: BandRule, rows: str, cover: str) -> np.ndarray:
    mask = block_mask(frames, bands, rows, cover)
    mask.setflags(write=False)
    return mask


@register("radial")
@dataclass(frozen=True)
class Radial(StaticMethod):
    """Sparse attention for video whose bands narrow with the distance between frames.

    A frame sees itself and its neighbours whole, farther frames through a band of nearby positions that halves with
    every doubling of the distance, and very far frames only every second, fourth, ... The mask is static, made of whole
    blocks, and O(n log n) in the length. Text in joint models stays dense.

    Without training keep about the first quarter of the steps and the first layer dense (:meth:`recommended`): with no
    dense step quality collapses. After LoRA fine-tuning with the same mask two dense layers are enough.

    Args:
        block_size: tokens per block. ``"auto"``: 128, as published, for frames of 1024 tokens or more; otherwise the
            largest power of two (at least 16) that cuts a frame into 8 blocks. Smaller is sparser and less efficient.
        decay_factor: scales the bands; published: 0.2 (Wan2.1), 0.8 (Wan2.2), 0.95 (HunyuanVideo), 1 (long videos).
        sink: every query sees the whole first frame.
        near: what a frame sees of its two neighbours: ``"full"``, ``"half"`` (bands of half a frame, as early versions
            of the published code did for Wan), or ``"decay"`` (the rule of the farther frames; for short clips, where
            neighbours are most of the video).
        thin_below: bands shorter than this many tokens are thinned by frame. ``"auto"``: 128, as published, with
            blocks of 64 or 128, else one block.
        rows: how the rows of a block that straddles two frames count: ``"frame"`` only those of the query's frame
            (keeps more than 90 % of each wanted band at any size), ``"block"`` all, by the published rule.
            ``"published"``: all, and what of a pair of frames reaches beyond ``ceil(tokens / block)`` blocks is lost,
            block for block as the published code has it. All the same when the frame is a multiple of the block.
        cover: ``"most"`` keeps blocks that are well filled by the band; ``"any"`` every block the band touches.

    Source: Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation, arXiv 2506.19852.
    """

    block_size: int | Literal["auto"] = field(default="auto", metadata={"help": "tokens per block"})
    decay_factor: float = field(default=0.2, metadata={"help": "scales the width of the bands"})
    sink: bool = field(default=True, metadata={"help": "every query sees the first frame"})
    near: Literal["full", "half", "decay"] = field(default="full", metadata={"help": "bands of neighbouring frames"})
    thin_below: int | Literal["auto"] = field(default="auto", metadata={"help": "bands shorter than this are thinned"})
    rows: Literal["frame", "block", "published"] = field(
        default="frame", metadata={"help": "rows that count in a straddling block"}
    )
    cover: Literal["most", "any"] = field(default="most", metadata={"help": "which touched blocks stay"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    source: ClassVar[str] = "Radial Attention, arXiv 2506.19852"

    def __post_init__(self):
        super().__post_init__()
        for name, low in (("block_size", 8), ("thin_below", 1)):
            if getattr(self, name) != "auto":
                check_int("radial", name, getattr(self, name), low, 4096)
        check_number("radial", "decay_factor", self.decay_factor, 0)
        check_flag("radial", "sink", self.sink)
        check_choice("radial", "near", self.near, NEAR)
        check_choice("radial", "rows", self.rows, ROWS)
        check_choice("radial", "cover", self.cover, ("most", "any"))

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The authors' training-free schedule: 12 dense steps of 50 (a quarter of few-step runs), one dense layer."""
        dense = max(1, round(steps * 12 / 50)) if steps > 1 else 0
        return {"steps": f"{dense}:", "layers": "1:" if layers > 1 else "0:"}

    def block(self, layout: TokenLayout) -> int:
        """Tokens per block for a layout."""
        if self.block_size != "auto":
            return self.block_size
        size = _PAPER_BLOCK
        while size > 16 and size * _BLOCKS_PER_FRAME > layout.frame_tokens:
            size //= 2
        return size

    def bands(self, layout: TokenLayout) -> BandRule:
        """The bands of a concrete grid."""
        block = self.block(layout)
        thin = self.thin_below
        if thin == "auto":
            thin = _PAPER_BLOCK if block >= 64 else block
        return BandRule(layout.frame_tokens, block, float(self.decay_factor), thin, self.sink, self.near)

    def grid_blocks(self, layout: TokenLayout) -> np.ndarray:
        """Kept blocks of the grid in raster order, bool (M, M); one or two frames are dense."""
        bands = self.bands(layout)
        if layout.grid[0] <= 2:
            return np.ones((-(-layout.grid_length // bands.block),) * 2, dtype=bool)
        return _grid_mask(layout.grid[0], bands, self.rows, self.cover)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        bands = self.bands(layout)
        widths = [bands.width(1 + d, 1) for d in range(1, min(layout.grid[0], 9))]
        text = ", ".join("none" if width is None else str(width) for width in widths)
        return f"blocks of {bands.block} tokens;  half width of the band at frame distance 1, 2, ...: {text}"

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; also refuses the published row rules where they leave tokens without any key."""
        reason = super().why_not(site)
        if reason is not None or self.rows == "frame":
            return reason
        size = self.block(site.layout)
        if self.rows == "published" and site.layout.grid[0] > 2 and site.layout.grid_length % size:
            return (
                f"radial with rows='published' needs a number of tokens that is a multiple of its block: got "
                f"{site.layout.grid_length} tokens in blocks of {size}; use rows='block' or another block_size"
            )
        if not self.grid_blocks(site.layout).any(1).all():
            return (
                f"radial with rows={self.rows!r} leaves a block of the grid {site.layout.grid} without any key; "
                "use rows='frame'"
            )
        return reason

    def build_plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout; see :meth:`StaticMethod.build_plan`."""
        grid = self.grid_blocks(layout)
        wanted = self._wanted_share(layout, grid)
        if grid.all() and key_mask is None:
            return StaticPlan(None, Density(1.0, 1.0, dense=True))
        size, order = self.block(layout), None
        inside = np.ones(grid.shape[0], dtype=bool)
        if len(layout.segments) > 1:
            pieces = [(segment.name, segment.length) for segment in layout.segments]
            order = TokenOrder.from_grid((layout.grid_length,), (size,), pieces)
            inside = np.concatenate([np.full(-(-length // size), name == GRID) for name, length in pieces])
        kept = np.ones((len(inside), len(inside)), dtype=bool)
        kept[np.ix_(inside, inside)] = grid
        rule = None if key_mask is None else Rule.everything(layout.length, layout.length).hide_keys(key_mask.cpu())
        plan = BlockPlan.from_dense_blocks(
            torch.from_numpy(kept), layout.length, layout.length, block_q=size, block_k=size, rule=rule, order=order
        )
        return StaticPlan(plan, Density(wanted, executed_share(plan)))

    def _wanted_share(self, layout: TokenLayout, grid: np.ndarray) -> float:
        """Share of token pairs in kept blocks; the blocks, not the bands, are what the method defines."""
        size, tokens = self.block(layout), layout.grid_length
        valid = np.full(grid.shape[0], size, dtype=np.int64)
        valid[-1] = tokens - size * (len(valid) - 1)
        others = layout.length - tokens
        pairs = int(valid @ grid.astype(np.int64) @ valid) + 2 * tokens * others + others**2
        return pairs / layout.length**2

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`; O(n N) memory."""
        size, (start, stop) = self.block(layout), layout.grid_span
        rows = torch.ones(len(queries), layout.length, dtype=torch.bool)
        inside = (queries >= start) & (queries < stop)
        blocks = torch.from_numpy(self.grid_blocks(layout).copy())[(queries[inside] - start) // size]
        keys = torch.arange(stop - start) // size
        found = rows[inside]
        found[:, start:stop] = blocks[:, keys]
        rows[inside] = found
        return rows

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs, bool (N, N). O(N^2) memory."""
        size = self.block(layout)
        grid = torch.from_numpy(self.grid_blocks(layout).copy())
        tokens = layout.grid_length
        full = torch.ones(layout.length, layout.length, dtype=torch.bool)
        start, stop = layout.grid_span
        full[start:stop, start:stop] = grid.repeat_interleave(size, 0).repeat_interleave(size, 1)[:tokens, :tokens]
        return full
