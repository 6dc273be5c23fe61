"""What partial blocks of a plan let through, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.kernels.plan.bit_tiles import unpack
from genkit.kernels.plan.tables import PlanTables


def rule_groups(plan: PlanTables) -> int:
    """Batch entries that the mask specification tells apart; 1 = the same for all, or none."""
    return 1 if plan.rule is None else plan.rule.k_group.shape[0]


def entry_pairs(plan: PlanTables, b: Tensor, h: Tensor, i: Tensor, rank: Tensor) -> Tensor:
    """(n, block_q, block_k) bool: the pairs that n partial entries let through, key padding excluded.

    Args:
        b, h, i, rank: (n,) int64, where the entries are in ``partial_index``. With a mask specification per batch entry
            and lists for all, b is the batch entry itself.
    """
    own = b % plan.batch
    if plan.tiles is not None:
        return unpack(plan.tiles.words[plan.tiles.index[own, h, i, rank].long()], plan.block_k)
    j = plan.partial_index[own, h, i, rank].long()
    if plan.rule is None or not len(b):
        return block_pairs(plan, i, j)
    groups = b % rule_groups(plan)
    if bool((groups == groups[0]).all()):
        return block_pairs(plan, i, j, int(groups[0]))
    return torch.stack(
        [block_pairs(plan, i[n : n + 1], j[n : n + 1], group)[0] for n, group in enumerate(groups.tolist())]
    )


def block_pairs(plan: PlanTables, q_block: Tensor, k_block: Tensor, batch: int = 0) -> Tensor:
    """(n, block_q, block_k) bool: what validity of keys and the mask specification let through in n pairs of blocks."""
    slot = torch.arange(plan.block_k, device=k_block.device)
    inside = (slot < plan.k_valid[k_block][:, None])[:, None, :]
    if plan.rule is None:
        return inside.expand(-1, plan.block_q, -1)
    queries = q_block[:, None] * plan.block_q + torch.arange(plan.block_q, device=q_block.device)
    return plan.rule.tile(queries, k_block[:, None] * plan.block_k + slot, batch) & inside
