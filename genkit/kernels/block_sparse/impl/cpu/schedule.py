"""Turns a plan into the pieces of work of the CPU backend: zero-copy slices of contiguous keys, and gathered rows."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genkit.kernels.plan.bit_tiles import unpack
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.lists import from_mask
from genkit.kernels.plan.mask_spec import ABSENT
from genkit.kernels.plan.visibility import rule_groups

_BUNDLE_QUERIES = 768  # from so many queries on torch's kernel works in tiles of 256 instead of 64: 9 % faster
_BUNDLE_SHARE = 0.6  # of the keys of neighbouring query blocks that they must have in common to run together
_MASK_BYTES = 128 << 20  # masks kept on a plan; beyond this they are made again when needed


@dataclass(frozen=True)
class Slice:
    """Queries [start, stop) against the contiguous keys [first, last), for one row of the plan's lists.

    ``row`` names the query block whose mask applies, or is None when no mask is needed. ``count`` such windows follow
    each other: every one has the next queries, and keys ``shift`` further on.
    """

    start: int
    stop: int
    first: int
    last: int
    row: int | None
    count: int = 1
    shift: int = 0


@dataclass(frozen=True)
class Gathered:
    """Query blocks with equally many queries, key blocks and key tokens; their keys are copied together.

    Args:
        rows: query blocks, list after list of the plan, ascending in each.
        starts: where in ``rows`` each of the plan's lists begins, counted batch entry by head, and the end.
        queries: valid queries per block. tokens: valid keys per row.
        blocks: (rows, count) int64 key blocks, ascending.
        masked: whether some of the blocks are decided token by token.
        adds: whether these are further keys of queries that were served before, to be merged with what is there.
    """

    rows: list[int]
    starts: list[int]
    queries: int
    tokens: int
    blocks: Tensor
    masked: bool
    adds: bool = False

    def bounds(self, row: int) -> tuple[int, int]:
        """First and last + 1 of the rows of one of the plan's lists."""
        return self.starts[row], self.starts[row + 1]


@dataclass(frozen=True)
class Schedule:
    """All work of a plan.

    Args:
        slices: list after list of the plan. starts: as in :class:`Gathered`.
        covers: whether it writes every query of the tensors.
        pairs: (query, key) pairs visited in slices, on average over the plan's lists.
    """

    slices: list[Slice]
    starts: list[int]
    gathered: list[Gathered]
    covers: bool
    pairs: float

    def slices_of(self, row: int) -> list[Slice]:
        """The slices of one of the plan's lists, counted batch entry by head."""
        return self.slices[self.starts[row] : self.starts[row + 1]]

    @property
    def merges(self) -> bool:
        """Whether some queries are served in two parts."""
        return any(group.adds for group in self.gathered)


def schedule(plan: BlockPlan) -> Schedule:
    """The schedule of a plan, made once and kept on it."""
    if "cpu" not in plan.cache:
        plan.cache["cpu"] = _make(plan)
    return plan.cache["cpu"]


def _make(plan: BlockPlan) -> Schedule:
    keep = plan.states() != ABSENT
    count, index = from_mask(keep)
    index = index.long()
    used = torch.arange(index.shape[-1]) < count[..., None]
    tokens = torch.where(used, plan.k_valid[index], 0).sum(-1)
    last = index.gather(-1, (count[..., None].long() - 1).clamp(min=0))[..., 0]
    ragged = torch.nn.functional.pad((plan.k_valid < plan.block_k).int().cumsum(0), (1, 0))
    whole = ragged[last] == ragged[index[..., 0]]  # every block but the last one is full of keys
    span = last - index[..., 0] + 1
    run = (count > 0) & (span == count) & whole
    masked = plan.partial_count > 0
    if plan.rule is None and plan.tiles is None:
        masked = torch.zeros_like(masked)
    ends = (last * plan.block_k + plan.k_valid[last]).tolist()
    columns = (count, index[..., 0], tokens, run, masked)
    table = (*(column.tolist() for column in columns), ends)
    valid = plan.q_valid.tolist()
    bundles, together = _bundles(plan, keep, (count > 0) & ~run & ~masked)
    slices: list[Slice] = []
    starts = [0]
    groups: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
    for b in range(plan.batch):
        for h in range(plan.heads):
            own: list[Slice] = []
            for i, entry in enumerate(zip(*(part[b][h] for part in table), strict=True)):
                c, first, keys, straight, hidden, end = entry
                if not c or not valid[i]:
                    continue
                start = i * plan.block_q
                if straight:
                    _add_slice(own, Slice(start, start + valid[i], first * plan.block_k, end, i if hidden else None))
                elif (b, h, i) not in together:
                    groups[valid[i], c, keys, hidden].append((b, h, i))
            slices += own
            starts.append(len(slices))
    gathered = bundles
    for (queries, c, keys, hidden), rows in groups.items():
        at = tuple(torch.tensor(rows).unbind(1))
        gathered.append(_gathered(plan, rows, queries, keys, index[at][:, :c].clone(), hidden))
    covers = bool((count > 0).all()) and int(plan.q_valid.sum()) == plan.n_q
    pairs = sum(item.count * (item.stop - item.start) * (item.last - item.first) for item in slices)
    return Schedule(slices, starts, gathered, covers, pairs / (plan.batch * plan.heads))


def _gathered(plan: BlockPlan, rows: list[tuple[int, int, int]], *rest: object) -> Gathered:
    """A group of the (batch entry, head, query block) ``rows``, ascending."""
    lists = [b * plan.heads + h for b, h, _ in rows]
    starts = [bisect_left(lists, row) for row in range(plan.batch * plan.heads + 1)]
    return Gathered([i for _, _, i in rows], starts, *rest)


def _bundles(plan: BlockPlan, keep: Tensor, free: Tensor) -> tuple[list[Gathered], set[tuple[int, int, int]]]:
    """Neighbouring query blocks that share most of their keys: the common keys for all of them at once, then what each
    of them sees besides.

    Args:
        keep: bool (b, h, query blocks, key blocks). free: bool (b, h, query blocks), rows that may be bundled.

    Returns:
        The work, common keys first, and the rows of the plan that it serves.
    """
    size = -(-_BUNDLE_QUERIES // plan.block_q)
    whole = plan.blocks_q // size
    free = free & (plan.q_valid == plan.block_q)
    if size == 1 or not whole or not bool(free.any()):
        return [], set()
    rows = keep[:, :, : whole * size].unflatten(2, (whole, size))
    common = rows.all(3)
    share = common.sum(-1) / rows.sum(-1).amax(-1).clamp(min=1)
    chosen = (share >= _BUNDLE_SHARE) & free[:, :, : whole * size].unflatten(2, (whole, size)).all(-1)
    b, h, at = chosen.nonzero().unbind(1)
    shared = common[b, h, at]
    own = rows[b, h, at] & ~shared[:, None]
    first = torch.stack([b, h, at * size], 1)
    each = (first[:, None] + torch.tensor([0, 0, 1]) * torch.arange(size)[:, None]).flatten(0, 1)
    work = _alike(plan, shared, first, size * plan.block_q) + _alike(plan, own.flatten(0, 1), each, plan.block_q, True)
    return work, {tuple(row) for row in each.tolist()}


def _alike(plan: BlockPlan, seen: Tensor, rows: Tensor, queries: int, adds: bool = False) -> list[Gathered]:
    """Work on the key blocks ``seen`` (n, key blocks) bool by ``rows`` (n, 3), those with equally many put together."""
    count, index = from_mask(seen)
    keys = (seen * plan.k_valid).sum(-1)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, size in enumerate(zip(count.tolist(), keys.tolist(), strict=True)):
        if size[0]:
            groups[size].append(place)
    return [
        _gathered(plan, [tuple(row) for row in rows[at].tolist()], queries, tokens, index[at, :c].long(), False, adds)
        for (c, tokens), at in groups.items()
    ]


def _add_slice(slices: list[Slice], new: Slice) -> None:
    """Append to those of one list, or let the last one go on: with the same keys for more queries, or as a window that
    glides."""
    old = slices[-1] if slices else None
    if old is None or old.row is not None or new.row is not None:
        slices.append(new)
        return
    queries, keys = old.stop - old.start, old.last - old.first
    shift = old.shift or new.first - old.first
    if old.count == 1 and (old.stop, old.first, old.last) == (new.start, new.first, new.last):
        slices[-1] = replace(old, stop=new.stop)
    elif (
        (new.stop - new.start, new.last - new.first) == (queries, keys)
        and shift > 0
        and (new.start, new.first) == (old.start + old.count * queries, old.first + old.count * shift)
    ):
        slices[-1] = replace(old, count=old.count + 1, shift=shift)
    else:
        slices.append(new)


def additive_mask(
    plan: BlockPlan, batch: int, head: int, row: int, blocks: Tensor, queries: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """:func:`row_mask` as the kernel takes it: (1, 1, queries, tokens) of 0 and -inf, and (1, queries) bool of the
    queries that see nothing, or None. Kept on the plan while the budget lasts: every head and layer asks again."""
    masks = plan.cache.setdefault("cpu masks", {})
    key = (batch % rule_groups(plan), batch % plan.batch, head % plan.heads, row, dtype)
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
        batch, head: of the plan's lists; with a mask specification per batch entry, the batch entry itself.
        blocks: (count,) key blocks. queries: valid queries.

    Returns:
        hidden (queries, tokens) bool over the valid keys in order, and whether every query sees some key for sure.
    """
    own = batch % plan.batch, head % plan.heads, row
    full = set(plan.full_index[own][: int(plan.full_count[own])].tolist())
    decided = torch.tensor([block not in full for block in blocks.tolist()])
    slot = torch.arange(plan.block_k)
    valid = slot < plan.k_valid[blocks][:, None]
    columns = blocks[:, None] * plan.block_k + slot
    hidden = torch.zeros(queries, int(valid.sum()), dtype=torch.bool)
    some = valid & decided[:, None]
    if plan.tiles is None:
        rows = row * plan.block_q + torch.arange(queries)
        unseen = plan.rule.tile(rows, columns[some], batch % rule_groups(plan)).logical_not_()
    else:  # partial entries are in the order of `blocks`, as all lists are ascending
        words = plan.tiles.words[plan.tiles.index[own][: int(decided.sum())].long(), :queries]
        unseen = unpack(words, plan.block_k).transpose(0, 1)[:, valid[decided]].logical_not_()
    if bool(decided.all()):
        hidden = unseen
    else:
        hidden[:, some[valid]] = unseen
    return hidden, bool(full)
