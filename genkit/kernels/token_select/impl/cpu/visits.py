"""Per-token selection in the native kernels of block-sparse attention, in two ways.

``ByQuery``: 64 neighbouring queries run over the blocks that any of them chose, and a bit per pair hides what the
others did not. That does more than the chosen pairs, the less so the more alike neighbours choose. ``ByBlock``: every
block is visited by the queries that chose it, wherever they are. That does the chosen pairs only, but reads and writes
what a query has found once per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from genkit.kernels.native.attention import passes as native
from genkit.kernels.native.attention.visits import HALF, QUERIES, Anywhere, Lists, Visits, query_words

_PADDING = 1.15  # slots for keys, blocks filled up to whole units, at most so many times the keys
_ROW = {True: 130, False: 50}  # keys that take as long as reading and writing a row; with tiles keys are faster
_SAMPLES = 64  # groups of queries that are looked at
_TOGETHER = 8 << 20  # entries of the selection that are made into lists at once
_RANGES = 16  # of the queries of all heads, for as many threads; not by their number, on which results would depend
_RANGE = 3072  # queries that a range should have: the fewer, the less full are the groups of 64 that chose a block


class _Blocks(Lists):
    """The keys of blocks of any length.

    Args:
        starts: token offsets of the C blocks, and the end.
        tiles: whether to multiply tiles.
    """

    def __init__(self, starts: list[int], tiles: bool):
        offsets = torch.tensor(starts)
        lengths = offsets.diff()
        units = (64, HALF) if tiles else (64, 32, 16, 8)
        fits = (unit for unit in units if int(-(-lengths // unit).sum()) * unit <= _PADDING * starts[-1])
        unit = next(fits, units[-1])
        self.counts = -(-lengths // unit)  # units of every block
        super().__init__(starts[-1], QUERIES, True, unit, int(self.counts.sum()) * unit, tiles)
        self.first_unit = self.counts.cumsum(0) - self.counts
        self.block_of_unit = torch.repeat_interleave(torch.arange(len(lengths)), self.counts)
        place = torch.arange(len(self.block_of_unit)) - self.first_unit[self.block_of_unit]
        self.filled = (lengths[self.block_of_unit] - place * unit).clamp(max=unit)  # slots of every unit with a key
        self._inside = torch.arange(unit) < self.filled[:, None]
        self._places = slice(None) if self.slots == self.n_k else self._inside.flatten()

    def place(self, x: Tensor, into: Tensor) -> None:
        into[:, self._places] = x.to(into.dtype)

    def collect(self, x: Tensor) -> Tensor:
        return x[:, self._places]

    def hide_empty(self, units: Tensor, words: Tensor | int) -> Tensor:
        """Bits (units, 2, unit) that show ``words`` (units, 2, 1) in the slots with a key and nothing in others."""
        return torch.where(self._inside[units, None], words, 0).int().expand(-1, QUERIES // HALF, -1).contiguous()


class ByQuery(_Blocks):
    """Queries in their own order.

    Args:
        selected: bool (B, H, N, C).
    """

    def __init__(self, selected: Tensor, starts: list[int], tiles: bool):
        super().__init__(starts, tiles)
        self.selected = selected

    @cached_property
    def words(self) -> Tensor:
        """(B, H, query blocks, 2, C) int32: a bit for every query that chose the block."""
        b, h, n, c = self.selected.shape
        padded = torch.nn.functional.pad(self.selected, (0, 0, 0, -n % QUERIES))
        return query_words(padded.flatten(0, 1)).view(b, h, -1, QUERIES // HALF, c)

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        words, of_unit = self.words[batch, head], self.block_of_unit
        blocks, n = len(words), self.selected.shape[2]
        valid = (n - torch.arange(blocks) * QUERIES).clamp(max=QUERIES)
        bits = torch.arange(HALF) < (valid[:, None] - torch.tensor([0, HALF])).unsqueeze(-1)
        every = query_words(bits.flatten(1).unsqueeze(-1)) == words  # (blocks, 2, C)
        seen = (words != 0).any(1)[:, of_unit]
        whole = every.all(1)[:, of_unit] & (self.filled == self.unit)
        row, unit = seen.nonzero().unbind(1)
        hidden = ~whole[row, unit]
        masks = torch.where(hidden, hidden.cumsum(0) - 1, -1).int()
        row, masked = row[hidden], unit[hidden]
        shown = self.hide_empty(masked, words[row, :, of_unit[masked]][..., None])
        starts = torch.nn.functional.pad(seen.sum(1).cumsum(0), (1, 0))
        yield Visits(0, blocks, starts, unit.int(), masks, shown, valid)


class ByBlock(_Blocks):
    """The queries of one block after the other.

    Args:
        selected: bool (B, H, N, C).
        ranges: of queries, which may be worked on at the same time.
    """

    anywhere = True

    def __init__(self, selected: Tensor, starts: list[int], tiles: bool, ranges: int):
        super().__init__(starts, tiles)
        self.covers = False  # a query may choose nothing, and what was found is added to
        self._selected, self._ranges = selected, ranges
        self._made: dict[tuple[int, int], list[Anywhere]] = {}

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        if (batch, head) not in self._made:
            _, heads, n, blocks = self._selected.shape
            last = min(heads, head + max(1, _TOGETHER // (n * blocks)))
            found = self._make(self._selected[batch, head:last])
            self._made = {(batch, head + at): visits for at, visits in enumerate(found)}
        yield from self._made[batch, head]

    def _make(self, selected: Tensor) -> list[list[Anywhere]]:
        """For bool (heads, N, C) the visits of every head, range by range."""
        heads, n, blocks = selected.shape
        length = -(-n // self._ranges)
        padded = torch.nn.functional.pad(selected, (0, 0, 0, self._ranges * length - n))
        chosen = padded.unflatten(1, (self._ranges, length)).transpose(2, 3)  # (heads, ranges, C, queries)
        found = torch.from_numpy(np.flatnonzero(chosen))  # numpy is four times as fast here
        # lists of queries: one for every head, range and block
        ends = torch.searchsorted(found, torch.arange(1, heads * self._ranges * blocks + 1) * length)
        pairs = ends.diff(prepend=ends.new_zeros(1))
        groups = -(-pairs // QUERIES)
        first = groups.cumsum(0) - groups
        owner = torch.repeat_interleave(pairs)
        rows = torch.zeros(int(groups.sum()) * QUERIES, dtype=torch.int32)
        query = found - owner * length + owner // blocks % self._ranges * length
        rows[torch.arange(len(found)) + (first * QUERIES - ends + pairs)[owner]] = query.int()
        owner = torch.repeat_interleave(groups)
        valid = (pairs[owner] - (torch.arange(len(owner)) - first[owner]) * QUERIES).clamp(max=QUERIES)
        block = owner % blocks
        count = self.counts[block]
        starts = torch.nn.functional.pad(count.cumsum(0), (1, 0))
        unit = torch.arange(int(starts[-1])) + torch.repeat_interleave(self.first_unit[block] - starts[:-1], count)
        masks = torch.where(self.filled[unit] < self.unit, unit, -1).int()
        tables = 0, len(owner), starts, unit.int(), masks, self._bits, valid
        edges = [*first[::blocks].tolist(), len(owner)]
        spans = [Anywhere(*tables, rows=rows, span=span) for span in pairwise(edges)]
        return [spans[at : at + self._ranges] for at in range(0, len(spans), self._ranges)]

    @cached_property
    def _bits(self) -> Tensor:
        """A mask for every unit: the slots that hold a key."""
        return self.hide_empty(torch.arange(len(self.filled)), -1)


def lists(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, starts: list[int]) -> ByQuery | ByBlock:
    """The lists that are faster."""
    tiles = native.with_tiles(q.dtype)
    keys = starts[-1] / (len(starts) - 1)
    visited, chosen = _shares(selected)
    # zero times a number that is not finite would reach queries that did not choose its block
    if visited * keys <= chosen * (keys + _ROW[tiles]) and bool(
        (k.sum(dtype=torch.float32) + v.sum(dtype=torch.float32)).isfinite()
    ):
        return ByQuery(selected, starts, tiles)
    _, heads, n, _ = selected.shape
    return ByBlock(selected, starts, tiles, min(-(-_RANGES // heads), max(1, n // _RANGE)))


def _shares(selected: Tensor) -> tuple[float, float]:
    """Shares of (64 neighbouring queries, block) that any of them chose, and of (query, block) that are chosen, taken
    from some of the groups."""
    b, h, n, _ = selected.shape
    size = min(n, QUERIES)
    each = n // size  # whole groups of a head
    group = torch.arange(0, b * h * each, -(-b * h * each // _SAMPLES))
    head, first = group // each, group % each * size
    some = selected[(head // h)[:, None], (head % h)[:, None], first[:, None] + torch.arange(size)]
    return float(some.any(1).float().mean()), float(some.float().mean())
