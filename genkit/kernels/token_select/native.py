"""Per-token selection in the native kernels of block-sparse attention: 64 neighbouring queries run over the blocks that
any of them chose, and a bit per pair hides what the others did not.

Nothing is gathered or merged. It does more than the chosen pairs, the less so the more alike neighbours choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from genkit.kernels.block_sparse import native
from genkit.kernels.block_sparse.native_visits import HALF, QUERIES, Lists, Visits, query_words
from genkit.kernels.native import compiler

_PADDING = 1.15  # slots for keys, blocks filled up to whole units, at most so many times the keys
_GATHERED = 8.0  # times as long as a pair here takes a chosen pair that is gathered and merged in torch's kernel


class Chosen(Lists):
    """The lists of a selection.

    Args:
        selected: bool (B, H, N, C). starts: token offsets of the C blocks, and the end.
        tiles: whether to multiply tiles.
    """

    def __init__(self, selected: Tensor, starts: list[int], tiles: bool):
        lengths = torch.tensor(starts).diff()
        n_k = starts[-1]
        units = (64, HALF) if tiles else (64, 32, 16, 8)
        fits = (unit for unit in units if int(-(-lengths // unit).sum()) * unit <= _PADDING * n_k)
        unit = next(fits, units[-1])
        counts = -(-lengths // unit)
        super().__init__(n_k, QUERIES, True, unit, int(counts.sum()) * unit, tiles)
        self.selected = selected
        self._block_of_unit = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        place = torch.arange(len(self._block_of_unit)) - (counts.cumsum(0) - counts)[self._block_of_unit]
        first = torch.tensor(starts)[self._block_of_unit] + place * unit
        self._valid = (torch.tensor(starts)[self._block_of_unit + 1] - first).clamp(max=unit)
        self._filled = (torch.arange(unit) < self._valid[:, None]).flatten()

    @cached_property
    def words(self) -> Tensor:
        """(B, H, query blocks, 2, C) int32: a bit for every query that chose the block."""
        b, h, n, c = self.selected.shape
        padded = torch.nn.functional.pad(self.selected, (0, 0, 0, -n % QUERIES))
        return query_words(padded.flatten(0, 1)).view(b, h, -1, QUERIES // HALF, c)

    @property
    def visited(self) -> float:
        """Share of (query block, key block) pairs that are visited."""
        return float((self.words != 0).any(3).float().mean())

    def place(self, x: Tensor, into: Tensor) -> None:
        into[:, self._filled] = x.to(into.dtype)

    def collect(self, x: Tensor) -> Tensor:
        return x[:, self._filled]

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        words, of_unit = self.words[batch, head], self._block_of_unit
        blocks, n = len(words), self.selected.shape[2]
        valid = (n - torch.arange(blocks) * QUERIES).clamp(max=QUERIES)
        bits = torch.arange(HALF) < (valid[:, None] - torch.tensor([0, HALF])).unsqueeze(-1)
        every = query_words(bits.flatten(1).unsqueeze(-1)) == words  # (blocks, 2, C)
        seen = (words != 0).any(1)[:, of_unit]
        whole = every.all(1)[:, of_unit] & (self._valid == self.unit)
        row, unit = seen.nonzero().unbind(1)
        hidden = ~whole[row, unit]
        masks = torch.where(hidden, hidden.cumsum(0) - 1, -1).int()
        row, masked = row[hidden], unit[hidden]
        inside = torch.arange(self.unit) < self._valid[masked, None]
        shown = torch.where(inside[:, None], words[row, :, of_unit[masked]][..., None], 0)
        starts = torch.nn.functional.pad(seen.sum(1).cumsum(0), (1, 0))
        yield Visits(0, blocks, starts, unit.int(), masks, shown.contiguous(), valid)


def lists(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, starts: list[int], scale: float) -> Chosen | None:
    """What native kernels would walk, or None where gathering is faster or they cannot run."""
    if q.dtype == torch.float64 or q.shape[-1] > native.MAX_DIM or not scale > 0 or compiler.why_not("vectors"):
        return None
    if not bool((k.sum(dtype=torch.float32) + v.sum(dtype=torch.float32)).isfinite()):
        return None  # zero times such a number would reach queries that did not choose its block
    found = Chosen(selected, starts, native.with_tiles(q.dtype))
    return found if found.visited <= _GATHERED * float(selected.float().mean()) else None
