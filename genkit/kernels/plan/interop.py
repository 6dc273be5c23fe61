"""Plans to and from FlexAttention's ``BlockMask``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from genkit.errors import UsageError
from genkit.kernels.plan.bit_tiles import WORD, unpack
from genkit.kernels.plan.lists import to_mask
from genkit.kernels.plan.mask_mods import MaskMod, Seen, read_blocks
from genkit.kernels.plan.mask_spec import ALL, FULL, PARTIAL, WINDOW, Rule
from genkit.kernels.plan.sizes import Sizes
from genkit.kernels.plan.tables import PlanTables


def mask_mod(plan: PlanTables) -> MaskMod:
    """The exact visibility of a plan as a FlexAttention mask function over tokens in block order.

    It repeats what the block lists say, because FlexAttention outside a compiled graph looks at this function alone.
    """
    plan = plan.in_order()
    states, rule, tiles = plan.states(), plan.rule, plan.tiles
    numbers = None if tiles is None else plan.tile_numbers()
    batch, heads = states.shape[:2]

    def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row, column = i // plan.block_q, j // plan.block_k
        state = states[b % batch, h % heads, row, column]
        inside = (i % plan.block_q < plan.q_valid[row]) & (j % plan.block_k < plan.k_valid[column])
        partial = state == PARTIAL
        if rule is not None:
            partial = partial & _allowed(rule, b, i, j)
        elif tiles is not None:
            slot = j % plan.block_k
            word = tiles.words[numbers[b % batch, h % heads, row, column], i % plan.block_q, slot // WORD]
            partial = partial & (((word >> (slot % WORD)) & 1) == 1)
        return inside & ((state == FULL) | partial)

    mod.genkit_plan = plan
    return mod


def _allowed(rule: Rule, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The mask specification for single tokens, with indexing only so that it can be vectorised and compiled."""
    code = rule.visible[rule.q_group[i].long(), rule.k_group[b % rule.k_group.shape[0], j].long()]
    window = None
    for axis in range(rule.axes):
        at = rule.k_pos[j, axis]
        inside = (rule.q_lo[i, axis] <= at) & (at < rule.q_hi[i, axis])
        window = inside if window is None else window & inside
    if rule.radius2 is not None:
        apart = sum((rule.q_pos[i, axis] - rule.k_pos[j, axis]) ** 2 for axis in range(rule.axes))
        window = window & (apart < rule.radius2)
    return (code == ALL) | ((code == WINDOW) & window)


def to_block_mask(plan: PlanTables) -> BlockMask:
    """The plan as a ``BlockMask``; pooled keys have no counterpart there.

    Raises:
        UsageError: a plan with pooled keys.
    """
    if plan.pooled:
        raise UsageError("a plan with pooled keys has no BlockMask: FlexAttention reads every key block in full")
    plan = plan.in_order()
    if "block_mask" not in plan.cache:
        shape = (plan.batch, plan.heads, plan.blocks_q, plan.blocks_k)
        wide = []
        for index in (plan.partial_index, plan.full_index):
            table = torch.zeros(shape, dtype=torch.int32, device=plan.device)
            table[..., : index.shape[-1]] = index[..., : plan.blocks_k]  # lists may be wider than there are blocks
            wide.append(table)
        plan.cache["block_mask"] = BlockMask.from_kv_blocks(
            plan.partial_count,
            wide[0],
            plan.full_count,
            wide[1],
            BLOCK_SIZE=(plan.block_q, plan.block_k),
            mask_mod=mask_mod(plan),
            seq_lengths=(plan.n_q, plan.n_k),
        )
    return plan.cache["block_mask"]


def read_block_mask(mask: BlockMask, rule: Rule | None) -> tuple[Sizes, Rule | None, Tensor, Tensor, Seen | None]:
    """What a ``BlockMask`` says, ready to become a plan.

    Args:
        rule: what the mask function says, in closed form; compared with it on every partial block.

    Returns:
        sizes, the rule in block order or None, (B, H, Mq, Mk) bool masks of full and partial blocks, and, where there
        is no rule, what the mask function shows inside the partial blocks.

    Raises:
        UsageError: a rule that says something else than the mask function.
    """
    n_q, n_k = mask.seq_lengths
    block_q, block_k = mask.BLOCK_SIZE
    device = mask.kv_num_blocks.device
    own = getattr(mask.mask_mod, "genkit_plan", None)
    if own is None:
        sizes = Sizes.of(n_q, n_k, block_q, block_k, None, None, device)
        rule = None if rule is None else sizes.permute(rule.to(device))
    else:
        sizes, rule = Sizes(n_q, n_k, block_q, block_k, own.q_valid, own.k_valid), own.rule
    columns = len(sizes.k_valid)
    partial = to_mask(mask.kv_num_blocks, mask.kv_indices, columns)
    full = torch.zeros_like(partial)
    if mask.full_kv_num_blocks is not None:
        full = to_mask(mask.full_kv_num_blocks, mask.full_kv_indices, columns)
    # a full block that is short of keys needs a mask here
    partial, full = partial | (full & ~sizes.whole_keys), full & sizes.whole_keys
    seen = read_blocks(sizes, mask.mask_mod, partial)
    if rule is None:
        return sizes, None, full, partial, seen
    _compare(sizes, rule, seen)
    return sizes, rule, full, partial, None


def _compare(sizes: Sizes, rule: Rule, seen: Seen) -> None:
    """Raise UsageError where a rule in block order and what a mask function shows differ."""
    b, _, i, j = seen.where
    query, slot = torch.arange(sizes.block_q, device=i.device), torch.arange(sizes.block_k, device=i.device)
    for n, batch in enumerate((b % rule.k_group.shape[0]).tolist()):
        rows, columns = i[n] * sizes.block_q + query, j[n] * sizes.block_k + slot
        real = (query < sizes.q_valid[i[n]])[:, None] & (slot < sizes.k_valid[j[n]])
        ours = rule.tile(rows, columns, batch) & real
        if bool((unpack(seen.words[n], sizes.block_k) != ours).any()):
            raise UsageError("block mask: its mask function and the rule differ inside blocks; the two must agree")
