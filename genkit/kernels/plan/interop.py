"""Plans to and from FlexAttention's ``BlockMask``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from genkit.errors import UsageError
from genkit.kernels.plan.block_plan import BlockPlan, _Sizes
from genkit.kernels.plan.checks import partial_tiles
from genkit.kernels.plan.lists import to_mask
from genkit.kernels.plan.mask_spec import ALL, FULL, PARTIAL, WINDOW, Rule

_PAIRS = 1 << 20  # token pairs asked of a mask function together


def mask_mod(plan: BlockPlan) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The exact visibility of a plan as a FlexAttention mask function over tokens in block order.

    It repeats what the block lists say, because FlexAttention outside a compiled graph looks at this function alone.
    """
    plan = plan.in_order()
    states, rule = plan.states(), plan.rule
    batch, heads = states.shape[:2]

    def mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row, column = i // plan.block_q, j // plan.block_k
        state = states[b % batch, h % heads, row, column]
        inside = (i % plan.block_q < plan.q_valid[row]) & (j % plan.block_k < plan.k_valid[column])
        seen = state == FULL
        partial = state == PARTIAL
        if rule is not None:
            partial = partial & _seen(rule, b, i, j)
        return inside & (seen | partial)

    mod.genkit_plan = plan
    return mod


def _seen(rule: Rule, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The rule for single tokens, written with indexing only so that it can be vectorised and compiled."""
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


def to_block_mask(plan: BlockPlan) -> BlockMask:
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
            table[..., : index.shape[-1]] = index
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


def from_block_mask(mask: BlockMask, rule: Rule | None = None) -> BlockPlan:
    """The plan of a ``BlockMask``. A query block that visits nothing counts as switched off.

    Args:
        rule: what the mask function says, in closed form; not needed when no block is decided token by token, or when
            the mask came from :func:`to_block_mask`. It is compared with the mask function on every partial block.

    Raises:
        UsageError: partial blocks and no rule, or a rule that says something else than the mask function.
    """
    n_q, n_k = mask.seq_lengths
    block_q, block_k = mask.BLOCK_SIZE
    device = mask.kv_num_blocks.device
    own = getattr(mask.mask_mod, "genkit_plan", None)
    if own is None:
        sizes = _Sizes.of(n_q, n_k, block_q, block_k, None, None, device)
        rule = None if rule is None else sizes.permute(rule.to(device))
    else:
        sizes, rule = _Sizes(n_q, n_k, block_q, block_k, own.q_valid, own.k_valid, None, None), own.rule
    columns = len(sizes.k_valid)
    partial = to_mask(mask.kv_num_blocks, mask.kv_indices, columns)
    full = torch.zeros_like(partial)
    if mask.full_kv_num_blocks is not None:
        full = to_mask(mask.full_kv_num_blocks, mask.full_kv_indices, columns)
    plan = sizes.build(full, partial, rule, None, check=False)
    plain = _compare(plan, mask)
    whole = (sizes.k_valid == block_k)[None, None, None]
    # blocks that hide nothing need no mask, unless they are short of keys
    return sizes.build((full | plain) & whole, (partial & ~(plain & whole)) | (full & ~whole), rule, None, check=False)


def _compare(plan: BlockPlan, mask: BlockMask) -> Tensor:
    """(B|1, H|1, Mq, Mk) bool: partial blocks that hide nothing, without a rule. Raises where plan and mask differ."""
    plain = torch.zeros_like(plan.states(), dtype=torch.bool)
    used = torch.arange(plan.partial_index.shape[-1], device=plan.device) < plan.partial_count[..., None]
    b, h, i, r = used.nonzero(as_tuple=True)
    j = plan.partial_index[b, h, i, r].long()
    step = max(1, _PAIRS // (plan.block_q * plan.block_k))
    for start in range(0, len(b), step):
        part = slice(start, start + step)
        wanted, real = _ask(plan, mask, b[part], h[part], i[part], j[part])
        groups = 1 if plan.rule is None else plan.rule.k_group.shape[0]
        ours = torch.stack(
            [
                partial_tiles(plan, i[n : n + 1], j[n : n + 1], int(b[n]) % groups)[0]
                for n in range(start, start + len(wanted))
            ]
        )
        if bool(((wanted != ours) & real).any()):
            raise UsageError(
                "block mask: its mask function hides tokens inside blocks and "
                + (
                    "no rule was given; pass rule= with the same visibility in closed form"
                    if plan.rule is None
                    else "the rule says otherwise; the two must agree"
                )
            )
        if plan.rule is None:
            plain[b[part], h[part], i[part], j[part]] = True
    return plain


def _ask(plan: BlockPlan, mask: BlockMask, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """(n, block_q, block_k) bool twice: what the mask function shows, and where both tokens exist."""
    rows = i[:, None, None] * plan.block_q + torch.arange(plan.block_q, device=i.device)[:, None]
    columns = j[:, None, None] * plan.block_k + torch.arange(plan.block_k, device=i.device)
    real = (rows < plan.n_q) & (columns < plan.n_k)
    real = real & (rows % plan.block_q < plan.q_valid[i][:, None, None])
    rows, columns = rows.clamp(max=plan.n_q - 1), columns.clamp(max=plan.n_k - 1)
    shape = torch.broadcast_shapes(rows.shape, columns.shape)
    flat = [x.expand(shape).reshape(-1) for x in (b[:, None, None], h[:, None, None], rows, columns)]
    return torch.vmap(mask.mask_mod)(*flat).view(shape), real
