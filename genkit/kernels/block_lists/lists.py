"""The tables: lists of fixed width per query block, and lists per key block that lie one behind the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

#: Lists are as wide as a multiple of this: compiled kernels are told by whether a width is one, a multiple of 16 or
#: neither, so that with any width at all a run would compile the same kernel several times.
WIDTH_STEP = 16
#: Rows whose visits to a column share a word while lists are turned around.
WORD = 32
#: Bytes that turning lists around may use at once, beyond those of its results.
WORK_BYTES = 256 << 20
#: Bytes of scores that :func:`~genkit.kernels.block_lists.select_rows` asks for at once.
SCORE_BYTES = 256 << 20
_INT = 4


@dataclass(frozen=True, eq=False)
class BlockLists:
    """What every row visits: ``count`` (B|1, H|1, M) int32 and ``index`` (B|1, H|1, M, W) int32, ascending, 0 beyond
    the count. W is a multiple of ``WIDTH_STEP`` that depends on shapes and budgets only, never on values."""

    count: Tensor
    index: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.count, self.index))


class Inverse(NamedTuple):
    """Who visits every column. The rows that visit column c of a (batch, head) are
    ``entry[b, h, start[b, h, c]:start[b, h, c + 1]]``, ascending.

    ``start`` (B, H, C + 1) int32. ``entry`` (B, H, M * W) int32, 0 behind the last one: lists one behind the other take
    as many entries as the lists they come from, where a table of fixed width would have to be M wide. ``place`` (B, H,
    M, W) int32 is where each list entry went, 0 beyond the count; empty unless asked for.
    """

    start: Tensor
    entry: Tensor
    place: Tensor


def rounded(width: int) -> int:
    """The width of a list that holds ``width`` entries."""
    return max(1, -(-width // WIDTH_STEP)) * WIDTH_STEP


def kept_bytes(batch: int, heads: int, rows: int, columns: int, width: int, gradient: bool = True) -> int:
    """Bytes of the lists of ``rows`` query blocks that keep up to ``width`` of ``columns`` key blocks, and with
    ``gradient`` of their inverse."""
    lists = rows * (1 + rounded(width))
    inverse = rows * rounded(width) + columns + 1 if gradient else 0
    return batch * heads * (lists + inverse) * _INT


def working_bytes(batch: int, heads: int, rows: int, columns: int) -> int:
    """Bytes that turning lists around needs meanwhile: two words for 32 rows and a column, for as many heads at once as
    fit ``WORK_BYTES``."""
    per_head = 2 * -(-rows // WORD) * columns * _INT
    return min(batch * heads, heads_together(rows, columns)) * per_head


def heads_together(rows: int, columns: int) -> int:
    """(Batch, head) pairs whose lists are turned around at once."""
    return max(1, WORK_BYTES // max(1, 2 * -(-rows // WORD) * columns * _INT))
