"""Which samples are trained on when: batches of one shelf each, a function of the number alone.

Nothing is remembered between batches, so a resumed run goes on with exactly the samples of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genkit.errors import UsageError
from genkit.training.data.folder.cuts import Cut

#: Epochs whose order is kept.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class Batches:
    """Epochs of batches over the samples of a data set.

    In an epoch every sample comes as often as ``times`` says. Batches hold samples that can be stacked (of one shelf),
    in a new order every epoch; the last one of a shelf may be smaller. With several processes each gets its part of a
    batch; one that cannot be shared evenly is filled up from the beginning of its shelf's order.

    Args:
        cuts: the samples.
        size: samples per batch and process.
        seed: of the order.
        processes: that train together.
        times: how often each sample comes in an epoch; of a fraction that share of the samples comes, others in the
            next epoch. None: once.
    """

    cuts: tuple[Cut, ...]
    size: int
    seed: int = 0
    processes: int = 1
    times: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.cuts:
            raise UsageError("data: there is no sample to train on")
        if self.size < 1 or self.processes < 1:
            raise UsageError(f"train_batch_size: got {self.size}, allowed: a whole number from 1 on")
        if self.times is not None and (len(self.times) != len(self.cuts) or min(self.times) <= 0):
            raise UsageError("num_repeats and weight: every sample has a number above 0")

    @cached_property
    def per_epoch(self) -> int:
        """Batches in an epoch, the same in all."""
        return len(self._epoch(0))

    @cached_property
    def shelves(self) -> dict[str, int]:
        """Samples per epoch of every shelf."""
        return {shelf: sum(_count(times, len(group)) for times, group in groups)
                for shelf, groups in self._groups.items()}  # fmt: skip

    def at(self, number: int, rank: int = 0) -> list[Cut]:
        """The samples of a process in the batch of a number, counted over all epochs."""
        return [self.cuts[index] for _, index in self.places(number, rank)]

    def places(self, number: int, rank: int = 0) -> Iterator[tuple[int, int]]:
        """(place in the batch of all processes, number of the sample) of a process's samples."""
        epoch, index = divmod(number, self.per_epoch)
        batch = self._epoch(epoch)[index]
        share = len(batch) // self.processes
        return iter(list(enumerate(batch))[rank * share : (rank + 1) * share])

    @cached_property
    def _groups(self) -> dict[str, list[tuple[float, list[int]]]]:
        """Shelf -> (times, numbers of the samples that come so often)."""
        found: dict[str, dict[float, list[int]]] = {}
        for index, cut in enumerate(self.cuts):
            times = 1.0 if self.times is None else self.times[index]
            found.setdefault(cut.shelf, {}).setdefault(times, []).append(index)
        return {shelf: sorted(groups.items()) for shelf, groups in sorted(found.items())}

    @cached_property
    def _orders(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        return {}

    def _epoch(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        """Numbers of the samples of every batch, for all processes together."""
        if epoch not in self._orders:
            while len(self._orders) >= _KEPT:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self._ordered(epoch)
        return self._orders[epoch]

    def _ordered(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        rng = np.random.default_rng((self.seed, epoch))
        whole = self.size * self.processes
        found = []
        for groups in self._groups.values():
            shelf = [index for times, group in groups for index in self._present(times, group, epoch)]
            order = [shelf[i] for i in rng.permutation(len(shelf))]
            for start in range(0, len(order), whole):
                part = order[start : start + whole]
                found.append(tuple(part + _filling(order, -len(part) % self.processes)))
        return tuple(found[i] for i in rng.permutation(len(found)))

    def _present(self, times: float, group: list[int], epoch: int) -> list[int]:
        """The samples of a group that come in an epoch: a fraction goes round, so that all come equally often."""
        whole = int(times)
        rest = _count(times, len(group)) - whole * len(group)
        turn = np.random.default_rng((self.seed, len(group), group[0])).permutation(len(group))
        return group * whole + [group[turn[(epoch * rest + i) % len(group)]] for i in range(rest)]


def _count(times: float, group: int) -> int:
    """Samples per epoch of a group; at least one."""
    return max(round(times * group), int(times) * group, 1)


def _filling(order: Sequence[int], count: int) -> list[int]:
    return [order[i % len(order)] for i in range(count)]
