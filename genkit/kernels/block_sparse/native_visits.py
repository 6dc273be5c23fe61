"""A plan's lists as the native kernels walk them: units of 8 to 64 keys, and a bit for every hidden pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from genkit.kernels.block_sparse.plan import BlockPlan

UNITS = (64, 32, 16, 8)
QUERIES = 64  # that the kernels run at once
HALF = 32  # whose bits fill a word
_KEPT_BYTES = 128 << 20  # bits kept on a plan; beyond this they are made again when needed
_SPAN_BYTES = 32 << 20  # bits made together


@dataclass(frozen=True)
class Visits:
    """The visits of some successive query blocks of one of the plan's lists.

    Args:
        first: query block. count: of blocks.
        starts: (count + 1,) int64, where the visits of each block begin.
        units: (visits,) int32, which unit of keys. masks: (visits,) int32, which mask, or -1.
        bits: (masks, halves, unit) int32: bit i says whether query i of a half of 32 sees the key.
        valid: (count,) int64 valid queries.
    """

    first: int
    count: int
    starts: Tensor
    units: Tensor
    masks: Tensor
    bits: Tensor
    valid: Tensor
    _pieces: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @cached_property
    def tables(self) -> dict[str, int]:
        """Addresses of what a kernel is given of them, which must live as long as it runs."""
        return {name: getattr(self, name).data_ptr() for name in ("starts", "units", "masks", "bits", "valid")}

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """At most so many ranges of blocks with about equally many visits each."""
        if count not in self._pieces:
            wanted = torch.arange(1, count) * int(self.starts[-1]) // count
            edges = [0, *torch.searchsorted(self.starts, wanted).tolist(), self.count]
            self._pieces[count] = [(low, high) for low, high in pairwise(edges) if high > low]
        return self._pieces[count]


class Lists(ABC):
    """What native kernels walk: for every head the visits of all query blocks.

    Args:
        n_k: keys. block: queries of a block. unit: keys of a visit, one of :data:`UNITS`. keys: slots for keys, whole
            units.
        covers: whether the blocks hold every query of the tensors.
    """

    def __init__(self, n_k: int, block: int, unit: int, keys: int, covers: bool):
        self.n_k, self.block, self.unit, self.keys, self.covers = n_k, block, unit, keys, covers

    @property
    def halves(self) -> int:
        """Halves of 32 queries in a block, rounded up to whole groups of 64."""
        return -(-self.block // QUERIES) * 2

    @abstractmethod
    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        """The visits of a head, block after block."""


def unit_of(plan: BlockPlan) -> int:
    """Keys of a visit: the longest unit the kernels know that divides the plan's blocks, or 0 if none does."""
    return next((unit for unit in UNITS if plan.block_k % unit == 0), 0)


class PlanLists(Lists):
    """The lists of a plan whose blocks are whole units."""

    def __init__(self, plan: BlockPlan):
        covers = int(plan.q_valid.sum()) == plan.n_q
        super().__init__(plan.n_k, plan.block_q, unit_of(plan), plan.blocks_k * plan.block_k, covers)
        self.plan = plan

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        """Kept on the plan while the budget lasts."""
        plan = self.plan
        groups = 1 if plan.rule is None else plan.rule.k_group.shape[0]
        key = batch % plan.batch, head % plan.heads, batch % groups
        made = plan.cache.setdefault("native", {})
        if key in made:
            yield from made[key]
            return
        partial = plan.partial_count[key[:2]]
        size = self.halves * plan.block_k * 4
        used = plan.cache.get("native bytes", 0) + int(partial.sum()) * size
        spans = _spans(partial.tolist(), _SPAN_BYTES // size)
        if used > _KEPT_BYTES:
            yield from (self._make(key, low, high) for low, high in spans)
            return
        plan.cache["native bytes"] = used
        made[key] = [self._make(key, low, high) for low, high in spans]
        yield from made[key]

    def _make(self, key: tuple[int, int, int], low: int, high: int) -> Visits:
        """The visits of the query blocks [low, high): full blocks of keys first, then those with a mask."""
        plan, own = self.plan, key[:2]
        per_block = plan.block_k // self.unit
        lists = [(count[own][low:high], index[own][low:high]) for count, index in
                 ((plan.full_count, plan.full_index), (plan.partial_count, plan.partial_index))]
        used = torch.cat([torch.arange(index.shape[1]) < count[:, None] for count, index in lists], 1)
        blocks = torch.cat([index for _, index in lists], 1)[used]
        hidden = torch.zeros_like(used)
        hidden[:, lists[0][1].shape[1]:] = True
        hidden = hidden[used]
        parts = torch.arange(per_block)
        mask = torch.where(hidden, (hidden.cumsum(0) - 1) * per_block, -1)[:, None]
        mask = torch.where(mask < 0, -1, mask + parts)
        rows = (torch.arange(low, high)[:, None].expand_as(used)[used])[hidden]
        starts = torch.nn.functional.pad(used.sum(1).cumsum(0) * per_block, (1, 0))
        units = (blocks[:, None] * per_block + parts).flatten().int()
        bits = self._bits(rows, blocks[hidden].long(), key[2])
        return Visits(low, high - low, starts, units, mask.flatten().int(), bits, plan.q_valid[low:high].long())

    def _bits(self, rows: Tensor, blocks: Tensor, group: int) -> Tensor:
        """(pairs * block_k / unit, halves, unit) int32 for pairs of query and key blocks."""
        plan, parts = self.plan, self.halves
        query, slot = torch.arange(plan.block_q), torch.arange(plan.block_k)
        together = max(1, (4 << 20) // (parts * HALF * plan.block_k))
        found = []
        for at in range(0, len(rows), together):
            row, block = rows[at:at + together, None], blocks[at:at + together, None]
            seen = torch.zeros(len(row), parts * HALF, plan.block_k, dtype=torch.bool)
            inside = slot < plan.k_valid[block]
            if plan.rule is None:
                seen[:, :plan.block_q] = inside[:, None]
            else:
                tile = plan.rule.tile(row * plan.block_q + query, block * plan.block_k + slot, group)
                seen[:, :plan.block_q] = tile & inside[:, None]
            words = query_words(seen)  # (pairs, halves, block_k)
            found.append(words.unflatten(2, (-1, self.unit)).transpose(1, 2).flatten(0, 1))
        return torch.cat(found).contiguous() if found else torch.empty(0, parts, self.unit, dtype=torch.int32)


def query_words(seen: Tensor) -> Tensor:
    """(n, queries, columns) bool, whole halves, as (n, halves, columns) int32 with a bit for every query."""
    bits = seen.unflatten(1, (-1, HALF)).transpose(2, 3).contiguous()
    words = np.packbits(bits.numpy(), axis=-1, bitorder="little").view(np.int32)
    return torch.from_numpy(words).squeeze(-1)


def _spans(counts: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of successive blocks whose counts add up to at most ``limit``, or that are one block."""
    low = total = 0
    for at, count in enumerate(counts):
        if at > low and total + count > limit:
            yield low, at
            low, total = at, 0
        total += count
    yield low, len(counts)
