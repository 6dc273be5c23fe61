"""Batches of a folder's samples: a function of their number alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from genkit.errors import UsageError
from genkit.training.data.folder.batches import Batches
from genkit.training.data.folder.buckets import Bucket
from genkit.training.data.folder.cuts import Cut
from genkit.training.data.folder.items import Item


def cuts_of(*counts: int) -> tuple[Cut, ...]:
    return tuple(
        Cut(Item(Path(f"{kind}-{index}.png"), ""), Bucket(1, 64, 64 + 16 * kind), (0,))
        for kind, count in enumerate(counts)
        for index in range(count)
    )


def test_every_sample_comes_once_an_epoch_in_batches_of_one_bucket():
    cuts = cuts_of(7, 5)
    batches = Batches(cuts, size=3, seed=1)
    assert batches.per_epoch == 5
    for epoch in range(3):
        rows = [batches.at(number) for number in range(5 * epoch, 5 * epoch + 5)]
        assert Counter(cut for row in rows for cut in row) == Counter(cuts)
        assert all(len({cut.bucket for cut in row}) == 1 for row in rows)
        assert sorted(map(len, rows)) == [1, 2, 3, 3, 3]
    first, second = ([batches.at(5 * epoch + i) for i in range(5)] for epoch in (0, 1))
    assert first != second
    # The number says it all: another object, asked in another order, gives the same.
    again = Batches(cuts, size=3, seed=1)
    assert [again.at(number) for number in (9, 0, 4)] == [second[4], first[0], first[4]]
    assert [Batches(cuts, size=3, seed=2).at(i) for i in range(5)] != first


def test_repeated_samples_come_as_often_as_they_are_there():
    cuts = cuts_of(3)
    seen = Counter()
    batches = Batches((*cuts, cuts[0], cuts[0]), size=2)
    for number in range(batches.per_epoch):
        seen.update(batches.at(number))
    assert seen == {cuts[0]: 3, cuts[1]: 1, cuts[2]: 1}


def test_processes_share_batches_evenly():
    cuts = cuts_of(7, 4)
    batches = Batches(cuts, size=2, processes=2)
    seen = Counter()
    for number in range(batches.per_epoch):
        parts = [batches.at(number, rank) for rank in range(2)]
        assert len(parts[0]) == len(parts[1]) >= 1
        assert len({cut.bucket for part in parts for cut in part}) == 1
        seen.update(cut for part in parts for cut in part)
    assert set(seen) == set(cuts) and sum(seen.values()) == 12  # seven are filled up to eight


def test_no_samples_and_no_size_are_refused():
    with pytest.raises(UsageError, match="no sample to train on"):
        Batches((), size=2)
    with pytest.raises(UsageError, match="train_batch_size: got 0"):
        Batches(cuts_of(1), size=0)


def test_fractions_of_a_repeat_go_round():
    batches = Batches(cuts_of(4, 3), size=2, times=(0.5,) * 4 + (1.5,) * 3)
    epochs = [
        [cut for number in range(e * batches.per_epoch, (e + 1) * batches.per_epoch) for cut in batches.at(number)]
        for e in range(6)
    ]
    assert {len(epoch) for epoch in epochs} == {2 + 4} == {sum(batches.shelves.values())}
    assert set(Counter(cut for epoch in epochs for cut in epoch).values()) == {3, 8}  # (6 + 18 // 9) of the others
    assert Batches(cuts_of(5), size=2, times=(0.01,) * 5).per_epoch == 1  # every shelf comes


def test_places_are_those_of_one_process_with_the_whole_batch():
    cuts = cuts_of(8)
    one, two = Batches(cuts, size=4, seed=3), Batches(cuts, size=2, seed=3, processes=2)
    for number in range(4):
        assert list(one.places(number)) == [*two.places(number, 0), *two.places(number, 1)]
