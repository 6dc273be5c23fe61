"""Which samples are trained on when: batches of one bucket each, a function of the number alone.

Nothing is remembered between batches, so a resumed run goes on with exactly the samples of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from genkit.errors import UsageError
from genkit.training.data.folder.items import Cut


@dataclass(frozen=True)
class Batches:
    """Epochs of batches over the samples of a data set.

    In an epoch every sample comes once. Batches hold samples of one bucket, in a new order every epoch; the last one of
    a bucket may be smaller. With several processes each gets its part of a batch; one that cannot be shared evenly is
    filled up from the beginning of its bucket's order.

    Args:
        cuts: the samples; one that is there twice comes twice as often.
        size: samples per batch and process.
        seed: of the order.
        processes: that train together.
    """

    cuts: tuple[Cut, ...]
    size: int
    seed: int = 0
    processes: int = 1

    def __post_init__(self):
        if not self.cuts:
            raise UsageError("data: there is no sample to train on")
        if self.size < 1 or self.processes < 1:
            raise UsageError(f"train_batch_size: got {self.size}, allowed: a whole number from 1 on")

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(_epoch(self, 0))

    def at(self, number: int, rank: int = 0) -> list[Cut]:
        """The samples of a process in the batch of a number, counted over all epochs."""
        epoch, index = divmod(number, self.per_epoch)
        batch = _epoch(self, epoch)[index]
        share = len(batch) // self.processes
        return [self.cuts[i] for i in batch[rank * share : (rank + 1) * share]]


@lru_cache(maxsize=4)
def _epoch(batches: Batches, epoch: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of the samples of every batch, for all processes together."""
    rng = np.random.default_rng((batches.seed, epoch))
    shelves: dict[str, list[int]] = {}
    for index, cut in enumerate(batches.cuts):
        shelves.setdefault(str(cut.bucket), []).append(index)
    whole = batches.size * batches.processes
    found = []
    for _, shelf in sorted(shelves.items()):
        order = [shelf[i] for i in rng.permutation(len(shelf))]
        for start in range(0, len(order), whole):
            part = order[start : start + whole]
            missing = -len(part) % batches.processes
            found.append(tuple(part + _filling(order, missing)))
    return tuple(found[i] for i in rng.permutation(len(found)))


def _filling(order: Sequence[int], count: int) -> list[int]:
    return [order[i % len(order)] for i in range(count)]
