"""Per-token selection in the native kernels of block-sparse attention, in two ways.

``ByQuery``: 64 neighbouring queries run over the blocks that any of them chose, and a bit per pair hides what the
others did not. That does more than the chosen pairs, the less so the more alike neighbours choose. ``ByBlock``: every
block is visited by the queries that chose it, wherever they are. That does the chosen pairs only, but reads and writes
what a query has found once per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genkit.kernels.block_sparse import native
from genkit.kernels.block_sparse.native_visits import HALF, QUERIES, Anywhere, Lists, Visits, query_words
from genkit.kernels.native import compiler

_PADDING = 1.15  # slots for keys, blocks filled up to whole units, at most so many times the keys
_ROW = {True: 130, False: 50}  # keys that take as long as reading and writing a row; with tiles keys are faster
_SAMPLES = 64  # groups of queries that are looked at
_RANGES = 2  # for every thread, where heads cannot be shared out evenly


def why_not(q: Tensor, scale: float) -> str | None:
    """Why native kernels cannot run this, or None."""
    if q.dtype == torch.float64:
        return "the kernels have no float64"
    if q.shape[-1] > native.MAX_DIM:
        return f"head dim {q.shape[-1]} exceeds {native.MAX_DIM}"
    return compiler.why_not("vectors") if scale > 0 else f"scale {scale} is not positive"


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
        self._selected = selected
        self._queries = -(-selected.shape[2] // ranges)

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        chosen = self._selected[batch, head].T
        for low in range(0, chosen.shape[1], self._queries):
            yield self._make(chosen[:, low:low + self._queries], low)

    def _make(self, chosen: Tensor, low: int) -> Anywhere:
        """The visits of the queries from ``low`` on, bool (C, queries)."""
        blocks, n = chosen.shape
        found = torch.from_numpy(np.flatnonzero(chosen))  # numpy is four times as fast here
        ends = torch.searchsorted(found, torch.arange(1, blocks + 1) * n)
        pairs = ends.diff(prepend=ends.new_zeros(1))
        groups = -(-pairs // QUERIES)
        first = groups.cumsum(0) - groups
        block = torch.repeat_interleave(pairs)
        rows = torch.zeros(int(groups.sum()) * QUERIES, dtype=torch.int32)
        rows[torch.arange(len(found)) + (first * QUERIES - ends + pairs)[block]] = (found - block * n + low).int()
        of_group = torch.repeat_interleave(groups)
        place = torch.arange(len(of_group)) - first[of_group]
        valid = (pairs[of_group] - place * QUERIES).clamp(max=QUERIES)
        count = self.counts[of_group]
        starts = torch.nn.functional.pad(count.cumsum(0), (1, 0))
        unit = torch.arange(int(starts[-1])) + torch.repeat_interleave(self.first_unit[of_group] - starts[:-1], count)
        masks = torch.where(self.filled[unit] < self.unit, unit, -1).int()
        return Anywhere(0, len(of_group), starts, unit.int(), masks, self._bits, valid, rows=rows)

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
    if (visited * keys <= chosen * (keys + _ROW[tiles])
            and bool((k.sum(dtype=torch.float32) + v.sum(dtype=torch.float32)).isfinite())):
        return ByQuery(selected, starts, tiles)
    threads, heads = torch.get_num_threads(), selected.shape[1]
    return ByBlock(selected, starts, tiles, 1 if heads % threads == 0 else -(-_RANGES * threads // heads))


def _shares(selected: Tensor) -> tuple[float, float]:
    """Shares of (64 neighbouring queries, block) that any of them chose, and of (query, block) that are chosen, taken
    from some of the groups."""
    b, h, n, c = selected.shape
    size = min(n, QUERIES)
    group = torch.arange(0, b * h * (n // size), -(-b * h * (n // size) // _SAMPLES))
    head, first = group // (n // size), group % (n // size) * size
    some = selected[(head // h)[:, None], (head % h)[:, None], first[:, None] + torch.arange(size)]
    return float(some.any(1).float().mean()), float(some.float().mean())
