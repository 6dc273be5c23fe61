"""Turns a plan into the pieces of work of the CPU backend: zero-copy slices of contiguous keys, and gathered rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_sparse.lists import from_mask
from genkit.kernels.block_sparse.plan import BlockPlan
from genkit.kernels.block_sparse.rule import ABSENT

_MASK_BYTES = 128 << 20  # masks kept on a plan; beyond this they are made again when needed


@dataclass(frozen=True)
class Slice:
    """Queries [start, stop) against the contiguous keys [first, last), for one row of the plan's lists.

    ``row`` names the query block whose mask applies, or is None when no mask is needed.
    """

    batch: int
    head: int
    start: int
    stop: int
    first: int
    last: int
    row: int | None


@dataclass(frozen=True)
class Gathered:
    """Query blocks with equally many queries, key blocks and key tokens; their keys are copied together.

    Args:
        rows: (batch, head, query block) of the plan's lists, ascending.
        queries: valid queries per block. tokens: valid keys per row.
        blocks: (rows, count) int64 key blocks, ascending.
        masked: whether some of the blocks are decided token by token.
    """

    rows: list[tuple[int, int, int]]
    queries: int
    tokens: int
    blocks: Tensor
    masked: bool


@dataclass(frozen=True)
class Schedule:
    """All work of a plan. ``covers`` tells whether it writes every query of the tensors; ``visits`` is how many queries
    see a key in slices, on average."""

    slices: list[Slice]
    gathered: list[Gathered]
    covers: bool
    visits: float


def schedule(plan: BlockPlan) -> Schedule:
    """The schedule of a plan, made once and kept on it."""
    if "cpu" not in plan.cache:
        plan.cache["cpu"] = _make(plan)
    return plan.cache["cpu"]


def _make(plan: BlockPlan) -> Schedule:
    count, index = from_mask(plan.states() != ABSENT)
    index = index.long()
    used = torch.arange(index.shape[-1]) < count[..., None]
    tokens = torch.where(used, plan.k_valid[index], 0).sum(-1)
    last = index.gather(-1, (count[..., None].long() - 1).clamp(min=0))[..., 0]
    ragged = torch.nn.functional.pad((plan.k_valid < plan.block_k).int().cumsum(0), (1, 0))
    whole = ragged[last] == ragged[index[..., 0]]  # every block but the last one is full of keys
    span = last - index[..., 0] + 1
    run = (count > 0) & (span == count) & whole
    masked = plan.partial_count > 0 if plan.rule is not None else torch.zeros_like(plan.partial_count, dtype=torch.bool)
    ends = (last * plan.block_k + plan.k_valid[last]).tolist()
    columns = (count, index[..., 0], tokens, run, masked)
    table = (*(column.tolist() for column in columns), ends)
    valid = plan.q_valid.tolist()
    slices: list[Slice] = []
    groups: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
    for b in range(plan.batch):
        for h in range(plan.heads):
            for i, entry in enumerate(zip(*(part[b][h] for part in table), strict=True)):
                c, first, keys, straight, hidden, end = entry
                if not c:
                    continue
                start = i * plan.block_q
                place = (b, h, start, start + valid[i], first * plan.block_k, end)
                if straight:
                    _add_slice(slices, Slice(*place, i if hidden else None))
                else:
                    groups[valid[i], c, keys, hidden].append((b, h, i))
    gathered = []
    for (queries, c, keys, hidden), rows in groups.items():
        at = tuple(torch.tensor(rows).unbind(1))
        gathered.append(Gathered(rows, queries, keys, index[at][:, :c].clone(), hidden))
    covers = bool((count > 0).all()) and int(plan.q_valid.sum()) == plan.n_q
    pairs = sum((item.stop - item.start) * (item.last - item.first) for item in slices)
    return Schedule(slices, gathered, covers, pairs / (plan.n_k * plan.batch * plan.heads))


def _add_slice(slices: list[Slice], new: Slice) -> None:
    """Append, or widen the last one when the same keys serve the next queries (one long call beats several)."""
    old = slices[-1] if slices else None
    if (old is not None and old.row is None and new.row is None and old.stop == new.start
            and (old.batch, old.head, old.first, old.last) == (new.batch, new.head, new.first, new.last)):
        slices[-1] = Slice(old.batch, old.head, old.start, new.stop, old.first, old.last, None)
    else:
        slices.append(new)


def additive_mask(plan: BlockPlan, batch: int, head: int, row: int, blocks: Tensor, queries: int,
                  dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """:func:`row_mask` as the kernel takes it: (1, 1, queries, tokens) of 0 and -inf, and (1, queries) bool of the
    queries that see nothing, or None. Kept on the plan while the budget lasts: every head and layer asks again."""
    masks = plan.cache.setdefault("cpu masks", {})
    key = (batch % plan.rule.k_group.shape[0], batch % plan.batch, head % plan.heads, row, dtype)
    if key not in masks:
        hidden, sure = row_mask(plan, batch, head, row, blocks, queries)
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[None, None]
        dead = None
        if not sure:
            dead = hidden.all(-1)[None]
            dead = dead if bool(dead.any()) else None
        used = plan.cache.get("cpu mask bytes", 0) + mask.numel() * mask.element_size()
        if used > _MASK_BYTES:
            return mask, dead
        plan.cache["cpu mask bytes"] = used
        masks[key] = mask, dead
    return masks[key]


def row_mask(plan: BlockPlan, batch: int, head: int, row: int, blocks: Tensor, queries: int) -> tuple[Tensor, bool]:
    """What a query block sees of its key blocks, token by token.

    Args:
        batch, head: of the plan's lists; with a rule per batch entry, the batch entry itself.
        blocks: (count,) key blocks. queries: valid queries.

    Returns:
        hidden (queries, tokens) bool over the valid keys in order, and whether every query sees some key for sure.
    """
    group = batch % plan.rule.k_group.shape[0]
    full = set(plan.full_index[batch % plan.batch, head % plan.heads, row,
                               :int(plan.full_count[batch % plan.batch, head % plan.heads, row])].tolist())
    decided = torch.tensor([block not in full for block in blocks.tolist()])
    slot = torch.arange(plan.block_k)
    valid = slot < plan.k_valid[blocks][:, None]
    columns = blocks[:, None] * plan.block_k + slot
    hidden = torch.zeros(queries, int(valid.sum()), dtype=torch.bool)
    some = valid & decided[:, None]
    rows = row * plan.block_q + torch.arange(queries)
    unseen = plan.rule.tile(rows, columns[some], group).logical_not_()
    if bool(decided.all()):
        hidden = unseen
    else:
        hidden[:, some[valid]] = unseen
    return hidden, bool(full)
