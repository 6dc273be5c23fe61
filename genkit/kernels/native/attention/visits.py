"""What the native kernels walk: visits of units of 8 to 64 keys, and a bit for every hidden pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

QUERIES = 64  # that the kernels run at once
HALF = 32  # whose bits fill a word
LOWEST = -1e30  # running maximum before the first key; finite, so that a hidden key gives 0 and not "no number"
_VISIT = 8  # keys that take as long as what a visit costs besides


@dataclass(frozen=True)
class Visits:
    """The visits of some successive query blocks of one of the plan's lists.

    Args:
        first: query block. count: of blocks.
        starts: (count + 1,) int64, where the visits of each block begin. Several lists may share the tables below.
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
        found = {name: getattr(self, name).data_ptr() for name in ("starts", "units", "masks", "bits", "valid")}
        return {**found, "rows": 0}

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """At most so many ranges of blocks with about equally many visits each."""
        if count == 1:
            return [(0, self.count)] if self.count else []
        if count not in self._pieces:
            first, last = int(self.starts[0]), int(self.starts[-1])
            wanted = first + torch.arange(1, count) * (last - first) // count
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
    cuts = [(unit, -(-length // unit) * unit) for unit in range(64, 0, -4)]
    return min(cuts, key=lambda cut: cut[1] + _VISIT * cut[1] // cut[0])


def query_words(seen: Tensor) -> Tensor:
    """(n, queries, columns) bool, whole halves, as (n, halves, columns) int32 with a bit for every query."""
    bits = seen.unflatten(1, (-1, HALF)).transpose(2, 3).contiguous()
    words = np.packbits(bits.numpy(), axis=-1, bitorder="little").view(np.int32)
    return torch.from_numpy(words).squeeze(-1)
