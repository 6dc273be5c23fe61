"""A plan as the Triton kernels read it: its lists split by what decides about their pairs, and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_lists import BlockLists, invert
from genkit.kernels.block_sparse.impl.triton.boxes import pack
from genkit.kernels.block_sparse.impl.triton.launch import Problem
from genkit.kernels.block_sparse.impl.triton.tile import (
    BITS,
    BOX,
    MEMBER,
    NO_MASK,
    RULE,
    BoxTables,
    Lists,
    RuleTables,
    Tokens,
)
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.lists import aligned, from_mask, to_mask
from genkit.kernels.plan.mask_spec import ALL, WINDOW, Rule, sure_pairs


def translate(plan: BlockPlan, inverse: bool, group: int = 1) -> Problem:
    """The tables of a plan in block order; with ``inverse`` its lists are those of dK and dV, query blocks per key
    block, and of all ``group`` query heads of a key head in one list."""
    split = _split(plan)
    lists = _columns(plan, split, group) if inverse else _rows(plan, split)
    tokens = Tokens(plan.n_q, plan.n_k, plan.q_valid.contiguous(), plan.k_valid.contiguous())
    kind, mask, axes = _mask(plan, split)
    return Problem(plan.block_q, plan.block_k, plan.blocks_q, plan.blocks_k, lists, tokens, kind, mask, axes)


@dataclass(frozen=True)
class _Split:
    """Which partial entries only lack the keys behind the end of their block: ``ragged``, like ``partial_index``, None
    where all or none of them do. ``mixed``: whether some hold pairs that must be decided one by one."""

    ragged: Tensor | None
    mixed: bool
    partial: bool


def _split(plan: BlockPlan) -> _Split:
    if "triton split" not in plan.cache:
        plan.cache["triton split"] = _find_split(plan)
    return plan.cache["triton split"]


def _find_split(plan: BlockPlan) -> _Split:
    rule = plan.rule
    if rule is None and plan.tiles is None:
        # only raggedness can make a block partial, and shapes tell of it: a plan chosen on the device is not looked at
        return _Split(None, False, not plan.even_keys)
    # One look at the device for both questions, and one more where blocks are ragged and a rule may hide pairs.
    partial, uneven = torch.stack([plan.partial_count.any(), (plan.k_valid != plan.block_k).any()]).tolist()
    if not partial:
        return _Split(None, False, False)
    # a distance needs so many registers that another loop beside its own would spill
    if plan.tiles is not None or not uneven or rule is None or rule.radius2 is not None:
        return _Split(None, True, True)
    _, every = sure_pairs(rule, plan.block_q, plan.block_k, plan.q_valid, plan.k_valid)
    index = plan.partial_index.long()
    batch = max(every.shape[0], index.shape[0])
    index = index.expand(batch, *index.shape[1:])
    whole = every[:, None].expand(batch, index.shape[1], -1, -1).gather(-1, index)
    used = torch.arange(index.shape[-1], device=index.device) < plan.partial_count[..., None]
    ragged = whole & used
    some, others = torch.stack([ragged.any(), (ragged != used).any()]).tolist()
    return _Split(ragged if some and others else None, others, True)


def _rows(plan: BlockPlan, split: _Split) -> Lists:
    """Key blocks per query block."""
    index, ragged_count = plan.partial_index, None
    count = plan.partial_count
    if split.ragged is not None:
        order = torch.sort((~split.ragged).to(torch.int8), dim=-1, stable=True).indices
        ragged_count = split.ragged.sum(-1, dtype=torch.int32)
        batch = ragged_count.shape[0]
        index, count = index.expand(batch, -1, -1, -1).gather(-1, order), count.expand(batch, -1, -1)
    tile = plan.tiles.index if plan.tiles is not None else None
    part = (count, index) if split.partial else None
    return _lists(plan.full_count, plan.full_index, part, tile, ragged_count)


def _columns(plan: BlockPlan, split: _Split, group: int) -> Lists:
    """Query blocks per key block. Keys that do not exist are rows of their own here, which are not stored: a block that
    only lacks some is as good as a full one."""
    if plan.rule is None and plan.tiles is None:
        return _chained(plan, group)
    if group == 1 and split.ragged is None and split.mixed == split.partial:
        lists = plan.inverse()
        part = (lists.partial_count, lists.partial_index) if split.partial else None
        return _lists(lists.full_count, lists.full_index, part, lists.partial_tile, None)
    full = to_mask(plan.full_count, plan.full_index, plan.blocks_k)
    partial = to_mask(plan.partial_count, plan.partial_index, plan.blocks_k)
    if split.mixed:
        whole = _ragged_mask(plan, split)
        full, partial = full | whole, partial & ~whole
    else:
        full, partial = full | partial, torch.zeros_like(partial)
    turned = _members(partial, group).mT
    tile = None if plan.tiles is None else aligned(turned, _members(plan.tile_numbers(), group).mT[turned])
    full_count, full_index = from_mask(_members(full, group).mT)
    part_count, part_index = from_mask(turned)
    full_index, part_index = (_with_member(index, plan.blocks_q, group) for index in (full_index, part_index))
    return _lists(full_count, full_index, (part_count, part_index) if split.mixed else None, tile, None)


def _chained(plan: BlockPlan, group: int) -> Lists:
    """Query blocks per key block in lists one behind the other, made without a look at the device: how long the
    longest is, only the device knows."""
    tables = [(plan.full_count, plan.full_index)]
    if not plan.even_keys:
        tables.append((plan.partial_count, plan.partial_index))
    found = invert([BlockLists(_rows_of_group(n, group), _rows_of_group(x, group)) for n, x in tables], plan.blocks_k)
    batch, heads, entries = found.entry.shape
    index = _with_member(found.entry, plan.blocks_q, group)
    chain = found.start.shape[-1]
    lines = heads if batch > 1 else 0, 1 if heads > 1 else 0
    return Lists(_ready(found.start), _ready(index), entries, None, None, None, None, None, *lines, chain)


def _rows_of_group(table: Tensor, group: int) -> Tensor:
    """(B, H, Mq, ...) to (B, H / group, group * Mq, ...), of lists that all heads share to (B, 1, group * Mq, ...)."""
    batch, heads, rows, *rest = table.shape
    if group == 1:
        return table
    if heads == 1:
        table = table.expand(batch, group, rows, *rest)
    return table.reshape(batch, -1, group * rows, *rest)


def _with_member(index: Tensor, blocks: int, group: int) -> Tensor:
    """Entries as the kernel takes them apart: the head of the group above MEMBER bits of the block."""
    return index if group == 1 else (index // blocks << MEMBER.value) + index % blocks


def _ragged_mask(plan: BlockPlan, split: _Split) -> Tensor:
    """(B, H, blocks_q, blocks_k) bool of the entries that are only ragged."""
    shape = plan.batch, plan.heads, plan.blocks_q, plan.blocks_k
    if split.ragged is None:
        return torch.zeros(shape, dtype=torch.bool, device=plan.device)
    wide = torch.zeros(len(split.ragged), *shape[1:], dtype=torch.uint8, device=plan.device)
    index = plan.partial_index.expand(len(split.ragged), -1, -1, -1).long()
    # entries behind the count point to block 0 and are not ragged: they must not undo what is
    return wide.scatter_reduce_(-1, index, split.ragged.to(torch.uint8), "amax").bool()


def _members(mask: Tensor, group: int) -> Tensor:
    """(B, H, Mq, Mk) to (B, H / group, group * Mq, Mk), of lists that all heads share to (B, 1, group * Mq, Mk)."""
    batch, heads, rows, columns = mask.shape
    if heads == 1:
        mask = mask.expand(batch, group, rows, columns)
    return mask.reshape(batch, -1, group * rows, columns)


def _lists(
    full_count: Tensor, full_index: Tensor, part: tuple[Tensor, Tensor] | None, tile: Tensor | None,
    ragged_count: Tensor | None,
) -> Lists:  # fmt: skip
    part_count = part_index = None
    if part is not None:
        batch = max(full_count.shape[0], part[0].shape[0])
        full_count, part_count = (_ready(x.expand(batch, -1, -1)) for x in (full_count, part[0]))
        full_index, part_index = (_ready(x.expand(batch, -1, -1, -1)) for x in (full_index, part[1]))
    batch, heads, blocks = full_count.shape
    return Lists(
        _ready(full_count),
        _ready(full_index),
        full_index.shape[-1],
        part_count,
        part_index,
        None if part_index is None else part_index.shape[-1],
        None if part is None or tile is None else _ready(tile),
        None if ragged_count is None else _ready(ragged_count),
        heads * blocks if batch > 1 else 0,
        blocks if heads > 1 else 0,
    )


def _ready(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _mask(plan: BlockPlan, split: _Split) -> tuple[int, RuleTables | BoxTables | Tensor | None, int]:
    """What decides about mixed blocks: its kind, its tables and, for a rule read axis by axis, its axes."""
    if split.mixed and plan.tiles is not None:
        return BITS.value, plan.tiles.words.contiguous(), 0
    if not split.mixed or plan.rule is None:
        return NO_MASK.value, None, 0
    if "triton box" not in plan.cache:
        plan.cache["triton box"] = pack(plan)
    if plan.cache["triton box"] is not None:
        return BOX.value, plan.cache["triton box"], 0
    return RULE.value, _rule_tables(plan.rule), plan.rule.axes


def _rule_tables(rule: Rule) -> RuleTables:
    """The rule as bit masks and axis-major tables."""
    q_lo, q_hi, k_pos = (t.T.contiguous() for t in (rule.q_lo, rule.q_hi, rule.k_pos))
    q_pos = rule.q_pos.T.contiguous() if rule.radius2 is not None and rule.q_pos is not None else None
    everything = window = bit = None
    if rule.visible.numel() > 1 or int(rule.visible[0, 0]) != WINDOW:
        powers = torch.ones_like(rule.visible, dtype=torch.int32) << torch.arange(
            rule.visible.shape[1], dtype=torch.int32, device=rule.device
        )
        query_group = rule.q_group.long()
        everything = (powers * (rule.visible == ALL)).sum(1, dtype=torch.int32)[query_group]
        window = (powers * (rule.visible == WINDOW)).sum(1, dtype=torch.int32)[query_group]
        bit = torch.ones_like(rule.k_group, dtype=torch.int32) << rule.k_group.to(torch.int32)
    stride = 0 if rule.k_group.shape[0] == 1 else rule.n_k
    return RuleTables(q_lo, q_hi, k_pos, q_pos, rule.radius2, everything, window, bit, stride, rule.n_q, rule.n_k)
