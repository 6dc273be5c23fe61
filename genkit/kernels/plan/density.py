"""How much of the full attention matrix a plan computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genkit.kernels.plan.bit_tiles import unpack
from genkit.kernels.plan.mask_spec import ALL, WINDOW
from genkit.kernels.plan.tables import PlanTables
from genkit.kernels.plan.visibility import block_pairs, rule_groups

_PAIRS = 1 << 22  # token pairs looked at together
_STEP = 1 << 12  # pairs of blocks counted together


class Density(NamedTuple):
    """``computed``: share of the token pairs that are visible; ``executed``: share of pairs in visited blocks, padding
    included (tile work), so it may exceed 1 with padded border blocks."""

    computed: float
    executed: float


def measure(plan: PlanTables) -> Density:
    """The densities of a plan, averaged over its batch entries and heads."""
    n_k = int(plan.k_valid.sum())
    pairs = int(plan.q_valid.sum()) * n_k
    computed, executed = _visited(plan)
    for part in plan.pooled:
        more = _visited(part.plan)
        computed, executed = computed + more[0], executed + more[1]
    return Density(computed / pairs, executed / pairs)


def _visited(plan: PlanTables) -> tuple[float, float]:
    """Visible token pairs and pairs in visited blocks, per batch entry and head on average."""
    rows = plan.batch * plan.heads
    entries = plan.full_count.sum().item() + plan.partial_count.sum().item()
    visible = float((plan.full_count * plan.q_valid).sum().item()) * plan.block_k
    used = torch.arange(plan.partial_index.shape[-1], device=plan.device) < plan.partial_count[..., None]
    b, h, i, r = used.nonzero(as_tuple=True)
    j = plan.partial_index[b, h, i, r].long()
    if plan.tiles is not None:
        each = torch.cat([unpack(tile, plan.block_k).sum((1, 2)) for tile in plan.tiles.words.split(_STEP)])
        visible += float(each[plan.tiles.index[b, h, i, r].long()].sum().item())
    elif plan.rule is None:
        visible += float((plan.q_valid[i].long() * plan.k_valid[j]).sum().item())
    else:
        visible += _count(plan, b, i, j)
    return visible / rows, entries * plan.block_q * plan.block_k / rows


def _count(plan: PlanTables, b: Tensor, i: Tensor, j: Tensor) -> float:
    """Visible pairs of partial blocks, each distinct block looked at once however many heads visit it."""
    groups = rule_groups(plan)
    key = ((b % groups) * plan.blocks_q + i) * plan.blocks_k + j
    distinct, times = key.unique(return_counts=True)
    place, columns = distinct // plan.blocks_k, distinct % plan.blocks_k
    batch, rows = place // plan.blocks_q, place % plan.blocks_q
    total = 0
    for g in batch.unique().tolist():
        here = batch == g
        boxes = _boxes(plan, g)
        for count, regular in ((_box_counts, True), (_tile_counts, False)):
            take = here & (boxes[columns] == regular)
            work = zip(rows[take].split(_STEP), columns[take].split(_STEP), times[take].split(_STEP), strict=True)
            total += sum(int((count(plan, g, part_i, part_j) * weight).sum()) for part_i, part_j, weight in work)
    return float(total)


def _tile_counts(plan: PlanTables, batch: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(n,) visible pairs of each pair of blocks, token by token."""
    step = max(1, _PAIRS // (plan.block_q * plan.block_k))
    found = []
    for part_i, part_j in zip(rows.split(step), columns.split(step), strict=True):
        real = torch.arange(plan.block_q, device=plan.device) < plan.q_valid[part_i][:, None]
        found.append((block_pairs(plan, part_i, part_j, batch) & real[..., None]).sum((1, 2)))
    return torch.cat(found)


def _boxes(plan: PlanTables, batch: int) -> Tensor:
    """(Mk,) bool: key blocks whose valid keys are of one group and fill a box, each place once."""
    rule = plan.rule
    real = torch.arange(plan.block_k, device=plan.device) < plan.k_valid[:, None]
    group = rule.k_group[batch].view(-1, plan.block_k)
    alike = ((group == group[:, :1]) | ~real).all(-1)
    if rule.radius2 is not None:
        return torch.zeros_like(alike)
    low, high = _box(plan)
    index = torch.zeros_like(group, dtype=torch.int64)
    for axis in range(rule.axes):
        extent = high[:, axis] - low[:, axis] + 1
        index = index * extent[:, None] + (rule.k_pos[:, axis].view(-1, plan.block_k) - low[:, axis, None])
    volume = (high - low + 1).prod(-1)
    # padding sorts behind every real key
    ranked = torch.where(real, index, torch.iinfo(torch.int64).max).sort(-1).values
    dense = ((ranked == torch.arange(plan.block_k, device=plan.device)) | ~real).all(-1)
    return alike & dense & (volume == plan.k_valid)


def _box(plan: PlanTables) -> tuple[Tensor, Tensor]:
    """(Mk, A) int64 twice: smallest and largest position of each block's valid keys."""
    real = (torch.arange(plan.block_k, device=plan.device) < plan.k_valid[:, None])[..., None]
    place = plan.rule.k_pos.view(plan.blocks_k, plan.block_k, -1).long()
    limit = torch.iinfo(torch.int32)
    return torch.where(real, place, limit.max).amin(1), torch.where(real, place, limit.min).amax(1)


def _box_counts(plan: PlanTables, batch: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(n,) visible pairs where the keys of a block fill a box: per query, the product of overlaps along the axes."""
    rule = plan.rule
    low, high = (edge[columns][:, None] for edge in _box(plan))
    slot = torch.arange(plan.block_q, device=plan.device)
    queries = rows[:, None] * plan.block_q + slot
    overlap = torch.minimum(rule.q_hi[queries], high + 1) - torch.maximum(rule.q_lo[queries], low)
    inside = overlap.clamp(min=0).prod(-1)
    group = rule.k_group[batch].view(-1, plan.block_k)[columns, 0].long()
    code = rule.visible[rule.q_group[queries].long(), group[:, None]]
    keys = plan.k_valid[columns].long()[:, None]
    seen = torch.where(code == ALL, keys, torch.where(code == WINDOW, inside, 0))
    return torch.where(slot < plan.q_valid[rows][:, None], seen, 0).sum(-1)
