"""Refusal of query rows that would see no key by accident."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.plan.mask_spec import Rule
from genkit.kernels.plan.sizes import Sizes
from genkit.kernels.plan.tables import PlanTables
from genkit.kernels.plan.visibility import entry_pairs, rule_groups

_PAIRS = 1 << 22  # token pairs looked at together


class NoVisibleKeyError(UsageError):
    """A query of a plan sees no key and was not switched off."""


def refuse_empty_rows(total: Tensor, sizes: Sizes, off: Tensor | None, rule: Rule | None = None) -> None:
    """Raise NoVisibleKeyError when a query block visits no key block and was not switched off.

    Args:
        total: (B|1, H|1, Mq) visited blocks per row.
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
        raise NoVisibleKeyError(
            f"plan: query block {i} (batch {b}, head {h}) sees no key block ({int(empty.sum())} "
            "such rows); give every row at least one block, or name the rows in off= to switch them off"
        )


def refuse_empty_tokens(plan: PlanTables, off: Tensor | None) -> None:
    """Raise NoVisibleKeyError when a query sees no key inside the blocks it visits and was not switched off.

    Rows without a full block: look for one visible key per query, nearest block first, until all have one.
    """
    if (plan.rule is None and plan.tiles is None) or torch.compiler.is_dynamo_compiling():
        return
    settled = torch.arange(plan.block_q, device=plan.device) >= plan.q_valid[:, None]
    if plan.rule is not None:
        settled = settled | plan.rule.off_queries().view_as(settled)
    doubtful = (plan.full_count == 0) & ~settled.all(-1)
    if off is not None:
        doubtful = doubtful & ~off.to(plan.device)
    b, h, i = doubtful.nonzero(as_tuple=True)
    if not b.numel():
        return
    seen = settled[i].clone()
    lists, count = plan.partial_index[b, h, i].long(), plan.partial_count[b, h, i]
    distance = (lists * plan.blocks_q - i[:, None] * plan.blocks_k).abs()
    distance[torch.arange(lists.shape[1], device=lists.device) >= count[:, None]] = torch.iinfo(torch.int64).max
    nearest = distance.argsort(dim=1)
    groups = rule_groups(plan)
    left = torch.arange(len(i), device=i.device)
    for rank in range(lists.shape[1]):
        left = left[~seen[left].all(-1) & (rank < count[left])]
        if not left.numel():
            break
        for batch in range(groups):
            rows = left if groups == 1 else left[b[left] == batch]
            for part in rows.split(max(1, _PAIRS // (plan.block_q * plan.block_k))):
                seen[part] |= entry_pairs(plan, b[part], h[part], i[part], nearest[part, rank]).any(-1)
    if bool((~seen).any()):
        row, slot = (~seen).nonzero()[0].tolist()
        token = int(i[row]) * plan.block_q + slot
        token = token if plan.order is None else int(plan.order.gather[token])
        way = (
            "show it a key, or pass check=False to give such tokens output 0"
            if plan.rule is None
            else "widen its window, or give it a group that sees no group at all to switch it off"
        )
        raise NoVisibleKeyError(
            f"plan: query token {token} (batch {int(b[row])}, head {int(h[row])}) sees no key "
            f"({int((~seen).sum())} such tokens); {way}"
        )
