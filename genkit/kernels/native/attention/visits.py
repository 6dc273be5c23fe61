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

from genkit.kernels.plan.block_plan import BlockPlan

QUERIES = 64  # that the kernels run at once
HALF = 32  # whose bits fill a word
LOWEST = -1e30  # running maximum before the first key; finite, so that a hidden key gives 0 and not "no number"
_VISIT = 8  # keys that take as long as what a visit costs besides
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


@dataclass(frozen=True)
class Anywhere(Visits):
    """The visits of query blocks that may share queries, so that one thread has to make them all.

    Args:
        rows: (count * 64,) int32, where the queries of each block are.
        span: the blocks that are meant; the others may be of other heads.
    """

    rows: Tensor = field(kw_only=True)
    span: tuple[int, int] = field(kw_only=True)

    @cached_property
    def tables(self) -> dict[str, int]:
        return {**super().tables, "rows": self.rows.data_ptr()}

    def pieces(self, count: int) -> list[tuple[int, int]]:
        return [self.span] if self.span[0] < self.span[1] else []


class Lists(ABC):
    """What native kernels walk: for every head the visits of all query blocks.

    Args:
        n_k: keys. block: queries of a block. covers: whether the blocks hold every query of the tensors.
        unit: keys of a visit. slots: places for keys, whole units.
        tiles: whether the kernels may multiply tiles.

    Attributes:
        anywhere: whether the visits are :class:`Anywhere`.
    """

    anywhere = False

    def __init__(self, n_k: int, block: int, covers: bool, unit: int, slots: int, tiles: bool):
        self.n_k, self.block, self.covers, self.unit, self.slots, self.tiles = n_k, block, covers, unit, slots, tiles

    @property
    def halves(self) -> int:
        """Halves of 32 queries in a block, rounded up to whole groups of 64."""
        return -(-self.block // QUERIES) * 2

    @abstractmethod
    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        """The visits of a head, block after block."""

    @abstractmethod
    def place(self, x: Tensor, into: Tensor) -> None:
        """Copy keys x (heads, n_k, D) to their slots of ``into`` (heads, slots, D), whose other slots are zero."""

    @cached_property
    def tokens(self) -> Tensor:
        """(slots,) int64: the key in each slot, some key in an empty one."""
        number, found = torch.arange(self.n_k)[None, :, None], torch.zeros(1, self.slots, 1, dtype=torch.int64)
        self.place(number, found)
        return found.flatten()

    @abstractmethod
    def collect(self, x: Tensor) -> Tensor:
        """The keys (heads, n_k, D) of slots x (heads, slots, D)."""


def unit_for(length: int, tiles: bool) -> tuple[int, int]:
    """Keys of a visit for blocks of ``length`` keys, and slots of such a block: whole units. Vectors want units of a
    multiple of 4, tiles of 32 or 64, which pays even where most slots stay empty: tiles are five times as fast."""
    if tiles:
        slots = -(-length // HALF) * HALF
        return (64 if slots % 64 == 0 else HALF), slots
    cuts = [(unit, -(-length // unit) * unit) for unit in range(64, 4, -4)]
    return min(cuts, key=lambda cut: cut[1] + _VISIT * cut[1] // cut[0])


class PlanLists(Lists):
    """The lists of a plan."""

    def __init__(self, plan: BlockPlan, tiles: bool):
        unit, self.length = unit_for(plan.block_k, tiles)
        covers = int(plan.q_valid.sum()) == plan.n_q
        super().__init__(plan.n_k, plan.block_q, covers, unit, plan.blocks_k * self.length, tiles)
        self.plan = plan

    def place(self, x: Tensor, into: Tensor) -> None:
        size, into = self.plan.block_k, into.unflatten(1, (-1, self.length))
        whole = self.n_k // size
        into[:, :whole, :size].copy_(x[:, : whole * size].unflatten(1, (whole, size)))
        if rest := self.n_k - whole * size:
            into[:, whole, :rest].copy_(x[:, whole * size :])

    def collect(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.length))[:, :, : self.plan.block_k].flatten(1, 2)[:, : self.n_k]

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        """Kept on the plan while the budget lasts."""
        plan = self.plan
        groups = 1 if plan.rule is None else plan.rule.k_group.shape[0]
        key = batch % plan.batch, head % plan.heads, batch % groups
        made = plan.cache.setdefault(("native", self.unit), {})
        if key in made:
            yield from made[key]
            return
        partial = plan.partial_count[key[:2]]
        size = self.halves * self.length * 4
        used = plan.cache.get("native bytes", 0) + int(partial.sum()) * size
        spans = _spans(partial.tolist(), _SPAN_BYTES // size)
        if used > _KEPT_BYTES:
            yield from (self._make(key, low, high) for low, high in spans)
            return
        plan.cache["native bytes"] = used
        made[key] = [self._make(key, low, high) for low, high in spans]
        yield from made[key]

    def _make(self, key: tuple[int, int, int], low: int, high: int) -> Visits:
        """The visits of the query blocks [low, high): full blocks of keys first, then those with masks. Mask 0 hides
        the empty slots at the end of a full block."""
        plan, own = self.plan, key[:2]
        per_block = self.length // self.unit
        lists = [
            (count[own][low:high], index[own][low:high])
            for count, index in ((plan.full_count, plan.full_index), (plan.partial_count, plan.partial_index))
        ]
        used = torch.cat([torch.arange(index.shape[1]) < count[:, None] for count, index in lists], 1)
        blocks = torch.cat([index for _, index in lists], 1)[used]
        partial = torch.zeros_like(used)
        partial[:, lists[0][1].shape[1] :] = True
        partial = partial[used]
        parts = torch.arange(per_block)
        filled = plan.block_k == self.length
        full = torch.where((parts == per_block - 1) & (not filled), 0, -1)
        masks = torch.where(partial[:, None], (partial.cumsum(0)[:, None] - 1) * per_block + 1 + parts, full)
        rows = torch.arange(low, high)[:, None].expand_as(used)[used][partial]
        starts = torch.nn.functional.pad(used.sum(1).cumsum(0) * per_block, (1, 0))
        units = (blocks[:, None] * per_block + parts).flatten().int()
        bits = torch.cat([self._tail(), self._bits(rows, blocks[partial].long(), key[2])])
        return Visits(low, high - low, starts, units, masks.flatten().int(), bits, plan.q_valid[low:high].long())

    def _tail(self) -> Tensor:
        """(1, halves, unit) int32: every query sees the slots of a block's last unit that hold keys."""
        keys = torch.arange(self.length - self.unit, self.length) < self.plan.block_k
        return torch.where(keys, -1, 0).int().expand(1, self.halves, -1)

    def _bits(self, rows: Tensor, blocks: Tensor, group: int) -> Tensor:
        """(pairs * units of a block, halves, unit) int32 for pairs of query and key blocks."""
        plan, parts = self.plan, self.halves
        query, slot = torch.arange(plan.block_q), torch.arange(plan.block_k)
        together = max(1, (4 << 20) // (parts * HALF * self.length))
        found = [torch.empty(0, parts, self.unit, dtype=torch.int32)]
        for at in range(0, len(rows), together):
            row, block = rows[at : at + together, None], blocks[at : at + together, None]
            seen = torch.zeros(len(row), parts * HALF, self.length, dtype=torch.bool)
            shown = seen[:, : plan.block_q, : plan.block_k]
            shown[:] = (slot < plan.k_valid[block])[:, None]
            if plan.rule is not None:
                shown &= plan.rule.tile(row * plan.block_q + query, block * plan.block_k + slot, group)
            words = query_words(seen)  # (pairs, halves, slots of a block)
            found.append(words.unflatten(2, (-1, self.unit)).transpose(1, 2).flatten(0, 1))
        return torch.cat(found)


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
