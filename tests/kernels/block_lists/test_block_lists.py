"""Lists made without a look at the device: against an oracle, in shapes, bytes, binaries and waits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import run_checks
from lists_oracle import BUDGETS, check, kept_like, scores_like, turned
from syncs import Syncs

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels.block_lists import (
    Budget,
    Kept,
    backends,
    invert,
    kept_bytes,
    list_mask,
    rounded,
    select,
    select_rows,
    why_not,
    working_bytes,
)
from genkit.kernels.block_lists import api as block_lists
from genkit.kernels.block_lists.impl.triton import backend as triton

ROOT = Path(__file__).parents[3]


def test_the_kernels_equal_the_oracle_in_the_interpreter():
    assert run_checks(Path(__file__).with_name("triton_checks.py")) == 22


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.sampled_from(BUDGETS),
    st.sampled_from([None, 1, 4]), st.booleans(),
)  # fmt: skip
def test_selection_equals_the_oracle(seed, rows, columns, budget, levels, odd):
    scores, kept = scores_like(seed, (1, 2, rows, columns), levels, odd), kept_like(seed, rows, columns)
    found = select(scores, budget, kept)
    check(scores, budget, kept, *found)
    assert found.index.shape[-1] == rounded(max(budget.bounds(columns)[1], kept.most))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 40), st.floats(0, 1))
def test_lists_and_their_inverse_equal_the_mask(seed, rows, columns, share):
    mask = torch.rand(2, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    lists = list_mask(mask)
    found = invert(lists, columns, placed=True)
    for b in range(2):
        want = turned(lists.count[b, 0], lists.index[b, 0], columns)
        start = found.start[b, 0].tolist()
        assert [found.entry[b, 0, a:z].tolist() for a, z in zip(start, start[1:], strict=False)] == want
        for m, (used, row) in enumerate(zip(lists.count[b, 0].tolist(), found.place[b, 0], strict=True)):
            assert (found.entry[b, 0][row[:used].long()] == m).all() and not row[used:].any()
        assert not found.entry[b, 0, start[-1] :].any()


def test_rows_are_empty_only_where_everything_is_forbidden():
    scores = torch.full((1, 1, 3, 8), -torch.inf)
    assert select(scores, Budget(keep=2), Kept.nothing(3, 8)).count.tolist() == [[[0, 0, 0]]]
    kept = Kept.diagonal(3 * 16, 8 * 16, 16, 16)
    assert kept.every and (select(scores, Budget(keep=2), kept).count > 0).all()
    assert not Kept.nothing(3, 8).every


@pytest.mark.parametrize(
    "n_q,n_k,block_q,block_k", [(96, 96, 32, 16), (100, 100, 32, 32), (70, 200, 16, 24), (9, 4, 2, 3)]
)
def test_the_diagonal_holds_the_own_tokens(n_q, n_k, block_q, block_k):
    kept = Kept.diagonal(n_q, n_k, block_q, block_k)
    mask = kept.mask()
    assert kept.every and kept.most == int(mask.sum(1).max())
    for query in range(n_q):
        low, high = query * n_k / n_q, (query + 1) * n_k / n_q
        tokens = [key for key in range(n_k) if key + 1 > low and key < high]
        assert all(mask[query // block_q, key // block_k] for key in tokens)
    wide = Kept.diagonal(n_q, n_k, block_q, block_k, beside=1).mask()
    assert torch.equal(wide, torch.nn.functional.max_pool1d(mask.float(), 3, 1, 1).bool())


def test_columns_are_kept_beside_ranges_and_counted_once():
    kept = Kept.of(torch.tensor([0, 2]), torch.tensor([2, 2]), 5).with_columns([1, 4])
    assert kept.mask().int().tolist() == [[1, 1, 0, 0, 1], [0, 1, 0, 0, 1]] and kept.most == 3 and kept.every
    assert torch.equal(kept.rows(1, 2).mask(), kept.mask()[1:])


def test_ranges_of_rows_one_after_the_other_give_the_same(monkeypatch):
    scores, kept = scores_like(7, (2, 2, 23, 40), 3, False), Kept.diagonal(23 * 4, 40 * 4, 4, 4)
    asked = []

    def rows(first, last):
        asked.append((first, last))
        return scores[:, :, first:last]

    monkeypatch.setattr(block_lists, "SCORE_BYTES", 5 * 2 * 2 * 40 * 4)
    found = select_rows(rows, 23, Budget(keep=6), kept, bytes_per_row=2 * 2 * 40 * 4)
    assert asked == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    assert all(torch.equal(a, b) for a, b in zip(found, select(scores, Budget(keep=6), kept), strict=True))


def test_bytes_are_those_of_the_tables():
    scores, kept = scores_like(0, (2, 3, 50, 37), None, False), Kept.nothing(50, 37)
    lists = select(scores, Budget(keep=5), kept)
    inverse = invert(lists, 37)
    held = [*lists, inverse.start, inverse.entry]
    assert kept_bytes(2, 3, 50, 37, 5) == sum(x.numel() * x.element_size() for x in held)
    assert kept_bytes(2, 3, 50, 37, 5, gradient=False) == sum(x.numel() * x.element_size() for x in lists)
    turn = triton.Turn(6, 50, 37, torch.device("cpu"))
    assert working_bytes(2, 3, 50, 37) == sum(x.numel() * x.element_size() for x in (turn.words, turn.before))


def test_bytes_at_a_million_tokens():
    """1,000,000 tokens in blocks of 128 x 64, 40 heads apart, 5 % of the key blocks."""
    rows, columns, heads = -(-1_000_000 // 128), -(-1_000_000 // 64), 40
    width = columns // 20
    q = 1_000_000 * heads * 128 * 2
    assert kept_bytes(1, heads, rows, columns, width) < 0.22 * q
    assert working_bytes(1, heads, rows, columns) <= 256 << 20
    assert kept_bytes(1, heads, rows, columns, width) < heads * rows * columns / 2  # a mask takes a byte each


def test_shapes_and_nothing_else_decide_sizes_and_no_value_is_read(monkeypatch):
    """On the meta device there are no values: what asked for one would fail, ``tolist`` too, which no mode sees."""

    class Kernel:
        def __getitem__(self, grid):
            assert all(isinstance(n, int) and n > 0 for n in grid)
            return lambda *given, **options: None

    monkeypatch.setattr(triton, "kernel", lambda name: Kernel())
    scores, kept = torch.empty(1, 4, 60, 90, device="meta"), Kept.diagonal(60 * 64, 90 * 64, 64, 64).to("meta")
    with Syncs() as syncs:
        for budget in BUDGETS:
            lists = select(scores, budget, kept)
            assert lists.index.shape == (1, 4, 60, rounded(max(budget.bounds(90)[1], kept.most)))
            assert invert(lists, 90, placed=True).entry.shape == (1, 4, 60 * lists.index.shape[-1])
        for form in block_lists._BACKENDS.found.values():
            count, index = form.select(scores, kept.first, kept.last, None, 0.5, 1, 20, 32)
            form.list_mask(scores > 0, 96)
            assert form.invert([count], [index], 90, True)[2].shape == (1, 4, 60, 32)
    assert not syncs.found


def test_one_graph_compiles_the_whole_of_it():
    kept = Kept.diagonal(12 * 8, 30 * 8, 8, 8)

    def function(scores):
        lists = select(scores.softmax(-1), Budget(mass=0.6, floor=2, cap=0.5), kept)
        return *lists, *invert(lists, 30)

    scores = scores_like(9, (1, 2, 12, 30), None, False)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(scores)
    assert all(torch.equal(a, b) for a, b in zip(found, function(scores), strict=True))


BINARIES = """
import json, sys
from tests.aot.driver import pretend
pretend("sm_90")
from tests.aot.variants_lists import select
from genkit.kernels.block_lists.impl.triton import kernels
for width in range(16, 1600, 16):
    select(5000, -1.0, width)()
print(json.dumps([len(cache[0]) for cache in kernels.select_kernel.device_caches.values()]))
"""


def test_lists_of_any_width_run_one_binary():
    done = subprocess.run([sys.executable, "-c", BINARIES], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1]


def test_refusals_say_what_is_allowed():
    scores, kept = torch.zeros(1, 1, 4, 8), Kept.nothing(4, 8)
    for wrong, words in (
        (dict(), "either keep= .* or mass="),
        (dict(keep=2, mass=0.5), "not both"),
        (dict(keep=0), "keep must be a whole number >= 1 or a share"),
        (dict(keep=1.5), "share in"),
        (dict(mass=0.0), r"mass must lie in \(0, 1\]"),
        (dict(mass=0.5, cap=0), "cap must be"),
        (dict(mass=0.5, floor=0), "floor must be"),
    ):
        with pytest.raises(UsageError, match=words):
            Budget(**wrong)
    with pytest.raises(UsageError, match="between 0 and 8"):
        Kept.of(torch.tensor([0]), torch.tensor([9]), 8)
    with pytest.raises(UsageError, match=r"columns \[8\] given, allowed: 0 to 7"):
        kept.with_columns([3, 8])
    with pytest.raises(UsageError, match="5 rows of 8 blocks"):
        select(torch.zeros(1, 1, 5, 8), Budget(keep=1), kept)
    with pytest.raises(UsageError, match="floating point"):
        select(scores.long(), Budget(keep=1), kept)
    with pytest.raises(UsageError, match="needs bool"):
        list_mask(scores)
    with pytest.raises(UsageError, match="stay below"):
        invert(list_mask(torch.empty(1, 1, 1 << 27, 1, dtype=torch.bool, device="meta")), 1)
    with pytest.raises(UsageError, match="of one table"):
        invert([list_mask(scores > 0)] * 2, 8, placed=True)
    assert backends() == ("triton", "torch") and why_not("torch", scores) is None
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="needs a CUDA or HIP device"):
            select(scores, Budget(keep=1), kept, backend="triton")
