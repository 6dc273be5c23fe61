"""The Triton form of lists in Triton's interpreter. Run by test_block_lists.py in its own process."""

from __future__ import annotations

import pytest
import torch
from lists_oracle import BUDGETS, check, kept_like, scores_like, turned
from syncs import Syncs

from genkit.kernels.block_lists import BlockLists, Budget, Kept, invert, list_mask, select
from genkit.kernels.block_lists.impl.triton import backend


@pytest.mark.parametrize("budget", BUDGETS[1:6], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 4, 21), (1, 1, 2, 600), (1, 2, 5, 1)], ids=str)
def test_selection_equals_the_oracle(budget, shape):
    for seed, (levels, odd) in enumerate(((None, False), (2, True))):
        scores = scores_like(seed + shape[-1], shape, levels, odd)
        scores = scores.softmax(-1) if budget.mass is not None and not odd else scores
        kept = kept_like(seed, shape[2], shape[3])
        # heads beside each other in memory, as a product of means leaves them
        turned_scores = scores.transpose(1, 2).contiguous().transpose(1, 2)
        found = select(turned_scores, budget, kept, backend="triton")
        check(scores, budget, kept, *found)
        for ours, torchs in zip(found, select(scores, budget, kept, backend="torch"), strict=True):
            assert torch.equal(ours, torchs)


@pytest.mark.parametrize("together", [1 << 28, 1])
def test_lists_turned_around_equal_the_oracle_and_plain_torch(together, monkeypatch):
    monkeypatch.setattr(backend, "heads_together", lambda rows, columns: max(1, together >> 20))
    g = torch.Generator().manual_seed(3)
    for rows, columns, share in ((70, 33, 0.3), (5, 200, 0.9), (33, 1, 0.5), (64, 10, 0.0)):
        full = torch.rand(2, 2, rows, columns, generator=g) < share
        first = torch.rand(full.shape, generator=g) < 0.5
        both = [list_mask(part, backend="triton") for part in (full & first, full & ~first)]
        for lists, places in ((both, False), (list_mask(full, backend="triton"), True)):
            found, torchs = (invert(lists, columns, placed=places, backend=name) for name in ("triton", "torch"))
            for ours, other in zip(found, torchs, strict=True):
                assert torch.equal(ours, other)
            whole = list_mask(full, backend="torch")
            for b in range(2):
                for h in range(2):
                    start = found.start[b, h].tolist()
                    have = [found.entry[b, h, low:high].tolist() for low, high in zip(start, start[1:], strict=False)]
                    assert have == turned(whole.count[b, h], whole.index[b, h], columns)


def test_nothing_waits_for_the_device_and_repeats_are_equal():
    scores, kept = scores_like(1, (1, 1, 10, 50), 3, True), Kept.diagonal(10 * 8, 50 * 8, 8, 8)
    runs = []
    for _ in range(2):
        with Syncs() as syncs:
            lists = select(scores, Budget(mass=0.7), kept, backend="triton")
            runs.append([*lists, *invert(lists, 50, placed=True, backend="triton")])
        assert not syncs.found and syncs.every
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_entries_never_leave_the_lists():
    # a width too small for the budget, as no caller gives it: lists are cut, memory beside them is not touched
    scores, kept = scores_like(2, (1, 1, 6, 90), None, False), Kept.nothing(6, 90)
    memory = torch.full((6 * 16 + 64,), 7, dtype=torch.int32)
    index, count = memory[: 6 * 16].view(1, 1, 6, 16), torch.empty(1, 1, 6, dtype=torch.int32)
    given, options = backend.select_arguments(scores, kept.first, kept.last, None, -1.0, 40, 40, count, index)
    backend._run(backend.kernel("select"), scores, given, options)
    assert (memory[6 * 16 :] == 7).all() and (count == 16).all() and ((index >= 0) & (index < 90)).all()


def test_operators_are_registered_as_they_run():
    scores, kept = scores_like(4, (1, 2, 6, 20), None, False), Kept.diagonal(60, 200, 10, 10)
    lists = select(scores, Budget(keep=3), kept)
    ops = torch.ops.genkit
    for operator, arguments in (
        (ops.select_lists, (scores, kept.first, kept.last, None, -1.0, 3, 3, 16, "triton")),
        (ops.mask_lists, (scores > 0, 32, "triton")),
        (ops.invert_lists, ([lists.count], [lists.index], 20, True, "triton")),
        (ops.invert_lists, ([lists.count], [lists.index], 20, False, "torch")),
    ):
        assert set(torch.library.opcheck(operator.default, arguments).values()) == {"SUCCESS"}


def test_addresses_beyond_two_to_the_31():
    # Two heads further apart than 32-bit offsets reach; only the pages that are touched exist.
    memory = torch.empty((1 << 31) + 4096, dtype=torch.float32)
    far = memory.as_strided((1, 2, 4, 30), (1, 1 << 31, 30, 1))
    near = scores_like(5, (1, 2, 4, 30), None, False)
    far.copy_(near)
    found = [select(x, Budget(keep=4), Kept.nothing(4, 30), backend="triton") for x in (far, near)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_lists_of_one_width_and_another_share_the_index_beyond_the_count():
    empty = BlockLists(torch.zeros(1, 1, 4, dtype=torch.int32), torch.full((1, 1, 4, 16), 5, dtype=torch.int32))
    found = invert(empty, 9, placed=True, backend="triton")
    assert not found.start.any() and not found.entry.any() and not found.place.any()
