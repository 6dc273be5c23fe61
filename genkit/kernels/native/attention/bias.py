"""Additive biases in the native kernels: values that are made for a query block at a time, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genkit.kernels.native.attention.visits import HALF, Lists, Visits
from genkit.kernels.native.batch import Values
from genkit.kernels.plan import bias_values as cpu_bias
from genkit.kernels.plan.bias import Bias

_BYTES = 16 << 20  # values held at once


class BiasTiles:
    """The values of biases in the calls of a batch.

    Args:
        terms: perhaps none. sums: where gradients of their tables are added, as ``cpu_bias.gradients`` makes them;
            a backward kernel leaves the gradients of the scores in place of the values.
    """

    def __init__(self, terms: Sequence[Bias], lists: Lists, scale: float, sums: Sequence[Sequence[Tensor]] = ()):
        self._terms, self._lists, self._scale, self._sums = terms, lists, scale, sums
        self._held: list[tuple[Tensor, tuple[int, int, int, int], Tensor]] = []
        self._bytes = 0

    def calls(self, part: Visits, first: int, last: int, batch: int, head: int) -> Iterator[Values]:
        """What calls for the blocks [first, last) of a part are given: all of them at once, or one at a time, each with
        its values."""
        if not self._terms:
            yield {"first": first, "last": last, "bias": 0}
            return
        for block in range(first, last):
            yield {"first": block, "last": block + 1, "bias": self._make(part, block, batch, head)}

    @property
    def full(self) -> bool:
        """Whether the calls should run and their gradients be collected, for the values take memory."""
        return self._bytes >= _BYTES

    def collect(self) -> None:
        """Add up the gradients that calls have left, and forget the values."""
        held, self._held, self._bytes = self._held, [], 0
        if any(self._sums):
            for tile, (batch, head, start, stop), tokens in held:
                d_scores = tile[:, : stop - start].mT
                cpu_bias.accumulate(self._terms, self._sums, d_scores, batch, head, start, stop, tokens)

    def _make(self, part: Visits, block: int, batch: int, head: int) -> Tensor:
        """(visits * unit, halves * 32) float32 values of one query block, in units of the scores before scaling."""
        lists = self._lists
        begin, end = part.starts[block : block + 2].tolist()
        slots = (part.units[begin:end, None].long() * lists.unit + torch.arange(lists.unit)).flatten()
        start = (part.first + block) * lists.block
        stop = start + int(part.valid[block])
        tokens = lists.tokens[slots]  # empty slots are hidden by a mask, whatever is added to them
        tile = torch.zeros(len(slots), lists.halves * HALF)
        values = tile[:, : stop - start]
        cpu_bias.turned_values(self._terms, batch, head, start, stop, tokens, 1 / self._scale, values)
        self._held.append((tile, (batch, head, start, stop), tokens))
        self._bytes += tile.nbytes
        return tile
