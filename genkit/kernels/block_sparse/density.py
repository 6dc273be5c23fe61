"""How much of the full attention matrix a plan computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from genkit.kernels.block_sparse.checks import partial_tiles

if TYPE_CHECKING:
    from genkit.kernels.block_sparse.plan import BlockPlan

_PAIRS = 1 << 22


def measure(plan: BlockPlan) -> tuple[float, float]:
    """(computed, executed) as in :meth:`BlockPlan.density`."""
    n_k = int(plan.k_valid.sum())
    pairs = int(plan.q_valid.sum()) * n_k
    computed, executed = _visited(plan)
    for part in plan.pooled:
        more = _visited(part.plan)
        computed, executed = computed + more[0], executed + more[1]
    return computed / pairs, executed / pairs


def _visited(plan: BlockPlan) -> tuple[float, float]:
    """Visible token pairs and pairs in visited blocks, per batch entry and head on average."""
    rows = plan.batch * plan.heads
    entries = plan.full_count.sum().item() + plan.partial_count.sum().item()
    visible = float((plan.full_count * plan.q_valid).sum().item()) * plan.block_k
    used = torch.arange(plan.partial_index.shape[-1], device=plan.device) < plan.partial_count[..., None]
    b, h, i, r = used.nonzero(as_tuple=True)
    j = plan.partial_index[b, h, i, r].long()
    if plan.rule is None:
        visible += float((plan.q_valid[i].long() * plan.k_valid[j]).sum().item())
    else:
        visible += _count(plan, b, i, j)
    return visible / rows, entries * plan.block_q * plan.block_k / rows


def _count(plan: BlockPlan, b: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> float:
    """Visible pairs of partial blocks, each distinct block looked at once however many heads visit it."""
    groups = plan.rule.k_group.shape[0]
    key = ((b % groups) * plan.blocks_q + i) * plan.blocks_k + j
    distinct, times = key.unique(return_counts=True)
    total = 0
    for part, weight in zip(*(x.split(max(1, _PAIRS // (plan.block_q * plan.block_k))) for x in (distinct, times)),
                            strict=True):
        place, columns = part // plan.blocks_k, part % plan.blocks_k
        batch, rows = place // plan.blocks_q, place % plan.blocks_q
        for g in batch.unique().tolist():
            take = batch == g
            tiles = partial_tiles(plan, rows[take], columns[take], g)
            real = torch.arange(plan.block_q, device=plan.device) < plan.q_valid[rows[take]][:, None]
            total += int(((tiles & real[..., None]).sum((1, 2)) * weight[take]).sum())
    return float(total)
