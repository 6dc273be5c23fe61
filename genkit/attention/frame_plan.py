"""Plans of methods that say which frames see which: frames are the unit, text and other tokens stay dense."""

from __future__ import annotations

import torch

from genkit.attention.method import Density
from genkit.attention.static import StaticPlan, executed_share
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import Rule
from genkit.layout import GRID, TokenLayout

_BLOCKS = (128, 64, 32, 16)
_PADDING = 1.125  # slots to a token up to which a larger block is worth its padding


def frame_plan(
    visible: torch.Tensor, kinds: torch.Tensor, layout: TokenLayout, key_mask: torch.Tensor | None = None
) -> StaticPlan:
    """The plan of heads of some kinds.

    Args:
        visible: bool (kinds, f, f), row = query frame.
        kinds: (heads,) int64, the kind of every head; of one kind alone all heads share the plan.
        key_mask: bool (B, N), True = attend.
    """
    wanted = pair_share(visible, kinds, layout)
    if key_mask is None and bool(visible[kinds].all()):
        return StaticPlan(None, Density(1.0, 1.0, dense=True))
    parts = runs(visible)
    pieces: list[tuple[str, int]] = []
    owner: list[int] = []  # the run that a piece is, -1 outside the grid
    for segment in layout.segments:
        if segment.name == GRID:
            pieces += [(f"frames {start} to {stop}", (stop - start) * layout.frame_tokens) for start, stop in parts]
            owner += range(len(parts))
        else:
            pieces.append((segment.name, segment.length))
            owner.append(-1)
    size = _block([length for _, length in pieces])
    order = TokenOrder.from_grid((layout.grid_length,), (size,), pieces)
    of_block = torch.tensor(
        [run for run, (_, length) in zip(owner, pieces, strict=True) for _ in range(-(-length // size))]
    )
    first = torch.tensor([start for start, _ in parts])
    seen = visible[:, first][:, :, first][:, of_block][:, :, of_block]
    outside = of_block < 0
    seen = seen | outside[:, None] | outside
    rule = None if key_mask is None else Rule.everything(layout.length, layout.length).hide_keys(key_mask.cpu())
    by_head = seen[0] if len(visible) == 1 else seen[kinds][None]
    plan = BlockPlan.from_dense_blocks(
        by_head, layout.length, layout.length, block_q=size, block_k=size, rule=rule, order=order
    )
    return StaticPlan(plan, Density(wanted, executed_share(plan)))


def pair_share(visible: torch.Tensor, kinds: torch.Tensor, layout: TokenLayout) -> float:
    """Share of the token pairs that are visible, mean over heads; arguments as of :func:`frame_plan`."""
    frames = visible.sum((1, 2))[kinds].double().mean().item()
    tokens, others = layout.grid_length, layout.length - layout.grid_length
    return (frames * layout.frame_tokens**2 + 2 * tokens * others + others**2) / layout.length**2


def frame_rows(visible: torch.Tensor, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
    """(kinds, n, N) bool: the keys that some queries (n,) int64 see, by kind of heads."""
    start, stop = layout.grid_span
    rows = torch.ones(len(visible), len(queries), layout.length, dtype=torch.bool)
    inside = (queries >= start) & (queries < stop)
    frame = (queries[inside] - start) // layout.frame_tokens
    rows[:, inside, start:stop] = visible[:, frame].repeat_interleave(layout.frame_tokens, 2)
    return rows


def runs(seen: torch.Tensor) -> list[tuple[int, int]]:
    """Half-open ranges of neighbouring frames that no kind of heads tells apart, from (kinds, f, f) bool."""
    rows = (seen[:, 1:] != seen[:, :-1]).any(-1).any(0)
    columns = (seen[:, :, 1:] != seen[:, :, :-1]).any(0).any(0)
    cuts = [0, *((rows | columns).nonzero()[:, 0] + 1).tolist(), seen.shape[-1]]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _block(lengths: list[int]) -> int:
    """Tokens of a block: the largest whose padding is small, else the one with the fewest slots."""
    slots = {size: sum(-(-length // size) * size for length in lengths) for size in _BLOCKS}
    cheap = [size for size in _BLOCKS if slots[size] <= _PADDING * sum(lengths)]
    return cheap[0] if cheap else min(_BLOCKS, key=lambda size: (slots[size], -size))
