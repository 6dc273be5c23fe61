"""Refusal of query rows that would see no key by accident."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit.errors import UsageError

if TYPE_CHECKING:
    from genkit.kernels.plan.block_plan import BlockPlan, _Sizes
    from genkit.kernels.plan.mask_spec import Rule

_PAIRS = 1 << 22  # token pairs looked at together


def refuse_empty_rows(
    total: Tensor,
    full_count: Tensor | None,
    plan: BlockPlan | None,
    sizes: _Sizes,
    rule: Rule | None,
    off: Tensor | None,
) -> None:
    """Raise UsageError when a valid query sees no key and was not switched off.

    Args:
        total: (B|1, H|1, Mq) visited blocks per row. full_count: of these, the full ones.
        off: (B|1, H|1, Mq) bool, rows switched off on purpose; so are, by a rule, queries of a group that sees none.
    """
    real = torch.arange(sizes.block_q, device=total.device) < sizes.q_valid[:, None]
    settled = ~real if rule is None else ~real | rule.off_queries().view_as(real)
    allowed = settled.all(-1)[None, None]
    if off is not None:
        allowed = allowed | off.to(total.device)
    empty = (total == 0) & ~allowed
    if torch.compiler.is_dynamo_compiling():
        torch._assert_async(~empty.any(), "plan: a query block sees no key and is not switched off")
        return
    if bool(empty.any()):
        b, h, i = empty.nonzero()[0].tolist()
        raise UsageError(
            f"plan: query block {i} (batch {b}, head {h}) sees no key block ({int(empty.sum())} "
            "such rows); give every row at least one block, or name the rows in off= to switch them off"
        )
    if rule is not None:
        _refuse_empty_tokens(plan, settled, (full_count == 0) & ~allowed, off)


def _refuse_empty_tokens(plan: BlockPlan, settled: Tensor, doubtful: Tensor, off: Tensor | None) -> None:
    """Rows without a full block: look for one visible key per query, nearest block first, until all have one."""
    b, h, i = doubtful.nonzero(as_tuple=True)
    if not b.numel():
        return
    seen = settled[i].clone()
    lists, count = plan.partial_index[b, h, i].long(), plan.partial_count[b, h, i]
    distance = (lists * plan.blocks_q - i[:, None] * plan.blocks_k).abs()
    distance[torch.arange(lists.shape[1], device=lists.device) >= count[:, None]] = torch.iinfo(torch.int64).max
    lists = lists.gather(1, distance.argsort(dim=1))
    groups = plan.rule.k_group.shape[0]
    left = torch.arange(len(i), device=i.device)
    for rank in range(lists.shape[1]):
        left = left[~seen[left].all(-1) & (rank < count[left])]
        if not left.numel():
            break
        for batch in range(groups):
            rows = left if groups == 1 else left[b[left] == batch]
            for part in rows.split(max(1, _PAIRS // (plan.block_q * plan.block_k))):
                seen[part] |= partial_tiles(plan, i[part], lists[part, rank], batch).any(-1)
    if bool((~seen).any()):
        row, slot = (~seen).nonzero()[0].tolist()
        token = int(i[row]) * plan.block_q + slot
        token = token if plan.order is None else int(plan.order.gather[token])
        raise UsageError(
            f"plan: query token {token} (batch {int(b[row])}, head {int(h[row])}) sees no key "
            f"({int((~seen).sum())} such tokens); widen its window, or give it a group that sees no group "
            "at all to switch it off"
        )


def partial_tiles(plan: BlockPlan, q_block: Tensor, k_block: Tensor, batch: int = 0) -> Tensor:
    """(n, block_q, block_k) bool: what each of n pairs of blocks lets through, key padding excluded."""
    slot = torch.arange(plan.block_k, device=k_block.device)
    inside = (slot < plan.k_valid[k_block][:, None])[:, None, :]
    if plan.rule is None:
        return inside.expand(-1, plan.block_q, -1)
    queries = q_block[:, None] * plan.block_q + torch.arange(plan.block_q, device=q_block.device)
    return plan.rule.tile(queries, k_block[:, None] * plan.block_k + slot, batch) & inside
