"""A disc of tokens and, behind the sequence, pooled keys that grid tokens read and others do not: the plan of both."""

from __future__ import annotations

from dataclasses import replace

import torch

from genkit.attention.grid_windows import GridWindows
from genkit.attention.method import Density
from genkit.attention.static import StaticPlan
from genkit.attention.strips import order_of
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import ALL, NONE, WINDOW, Rule
from genkit.layout import TokenLayout


def pooled_count(grid: tuple[int, int, int], factor: int) -> int:
    """Pooled keys of a grid: one for every ``factor`` x ``factor`` tokens of a frame."""
    return grid[0] * (grid[1] // factor) * (grid[2] // factor)


def pool(x: torch.Tensor, grid: tuple[int, int, int], weight: torch.Tensor) -> torch.Tensor:
    """Grid tokens (B, T*H*W, heads, D) weighed and summed over p x p tokens, (B, T*(H/p)*(W/p), heads, D).

    Args:
        weight: (p, p), shared by heads and channels. Differentiable, as ``x`` is.
    """
    frames, height, width = grid
    p = weight.shape[0]
    cells = x.unflatten(1, (frames * height // p, p, width // p, p))
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.einsum("bypxqhd,pq->byxhd", cells.to(wide), weight.to(wide)).flatten(1, 2).to(x.dtype)


def pooled_plan(
    windows: GridWindows, factor: int, layout: TokenLayout, kind: str, key_mask: torch.Tensor | None
) -> StaticPlan:
    """The plan over the keys of the sequence and, behind them, the pooled ones.

    Args:
        windows: of the disc. factor: side p of what is pooled.
        Others as in :meth:`genkit.attention.static.StaticMethod.build_plan`.
    """
    more = pooled_count(layout.grid, factor)
    rule = _with_pooled(windows.rule(layout), layout, more)
    if key_mask is not None:
        rule = rule.hide_keys(torch.nn.functional.pad(key_mask.cpu(), (0, more), value=True))
    order, key_order = _orders(windows, layout, kind, more)
    plan = BlockPlan.from_rule(rule, order=order, key_order=key_order)
    entries = float(plan.full_count.sum() + plan.partial_count.sum()) / (plan.batch * plan.heads)
    pairs = windows.pairs(layout) + layout.grid_length * more
    total = layout.length**2
    return StaticPlan(plan, Density(pairs / total, entries * plan.block_q * plan.block_k / total))


def _with_pooled(rule: Rule | None, layout: TokenLayout, more: int) -> Rule:
    """The rule of the sequence with keys behind it that tokens of the grid see and no others."""
    start, stop = layout.grid_span
    if rule is None:  # the disc hides nothing
        rule = Rule.everything(layout.length, layout.length)
        group = torch.ones(layout.length, dtype=torch.int8)
        group[start:stop] = 0
        rule = replace(rule, q_group=group, k_group=group, visible=torch.full((2, 2), ALL, dtype=torch.int8))
    behind = torch.zeros(more, rule.axes, dtype=torch.int32)
    groups = torch.full((1, more), 2, dtype=torch.int8)
    within = int(rule.visible[0, 0])
    return replace(
        rule,
        k_pos=torch.cat([rule.k_pos, behind]),
        k_group=torch.cat([rule.k_group, groups], 1),
        visible=torch.tensor([[WINDOW if within == WINDOW else ALL, ALL, ALL], [ALL, ALL, NONE]], dtype=torch.int8),
    )


def _orders(windows: GridWindows, layout: TokenLayout, kind: str, more: int) -> tuple[TokenOrder, TokenOrder]:
    """Queries in blocks as without pooled keys; keys likewise, the pooled ones in blocks of their own."""
    segments = [(segment.name, segment.length) for segment in layout.segments]
    choice = windows.choice(kind)
    order = order_of(windows.tables, choice.query, choice.block_q, segments)
    return order, order_of(windows.tables, choice.key, choice.block_k, [*segments, ("pooled", more)])
