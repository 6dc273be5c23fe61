"""Block scores and selection against worked examples, brute force and identities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import UsageError
from genkit.kernels.scores import (
    antidiagonal_scores,
    block_lists,
    block_mass,
    own_blocks,
    pool_blocks,
    pooled_scores,
    sampled_scores,
    select_threshold,
    select_top_k,
    select_top_p,
)


def wave(n, d, offset):
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + offset).reshape(n, d)


@pytest.fixture
def example():
    """Two heads, 16 tokens, 4 channels, blocks of 4: the worked example of the selection literature notes."""
    q = torch.stack([wave(16, 4, 0), 2 * wave(16, 4, 2)], 1)[None]
    k = torch.stack([wave(16, 4, 1), wave(16, 4, 1.5)], 1)[None]
    return q, k


def lists_of(mask):
    return [[row.nonzero().flatten().tolist() for row in head] for head in mask[0]]


BEST_TWO = [[[0, 3], [0, 3], [1, 2], [1, 2]], [[0, 3], [1, 2], [1, 2], [0, 3]]]


def test_true_mass_and_pooled_top_two_of_the_worked_example(example):
    mass = block_mass(*example, 4, 4)
    torch.testing.assert_close(mass[0, 0, 0], torch.tensor([0.504557, 0.157147, 0.080951, 0.257344]), rtol=0, atol=2e-6)
    torch.testing.assert_close(mass[0, 1, 1], torch.tensor([0.008928, 0.450920, 0.528859, 0.011293]), rtol=0, atol=2e-6)
    scores = pooled_scores(*example, 4, 4)
    chosen = select_top_k(scores, 2)
    assert lists_of(chosen) == BEST_TWO == lists_of(select_top_k(mass, 2))
    assert (mass * chosen).sum().item() / 8 == pytest.approx(0.806194105389, abs=1e-6)
    assert lists_of(select_top_p(scores, 0.6)) == BEST_TWO


def test_reversed_antidiagonals_of_the_worked_example(example):
    scores = antidiagonal_scores(*example, 4, stride=2, pairing="reversed")
    torch.testing.assert_close(
        scores[0, 0, 0], torch.tensor([1.028719, 0.328618, 0.150912, 0.491751]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(scores.sum(-1), torch.full((1, 2, 4), 2.0))
    assert lists_of(select_top_k(scores, 2)) == BEST_TWO
    aligned = antidiagonal_scores(*example, 4, stride=2)
    assert not torch.allclose(aligned, scores) and torch.allclose(aligned.sum(-1), torch.full((1, 2, 4), 2.0))


def test_pooling_counts_only_valid_tokens():
    x = torch.arange(10.0).reshape(1, 10, 1, 1)
    torch.testing.assert_close(pool_blocks(x, 4).flatten(), torch.tensor([1.5, 5.5, 8.5]))
    counted = pool_blocks(x, 4, torch.tensor([2, 4, 0]))
    torch.testing.assert_close(counted.flatten(), torch.tensor([0.5, 5.5, 0.0]))
    poisoned = x.clone()
    poisoned[0, 3] = torch.nan
    assert pool_blocks(poisoned, 4, torch.tensor([3, 4, 2])).isfinite().all()


def test_scores_ignore_blocks_without_tokens_and_match_heads():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 4, 8, generator=g), torch.randn(2, 12, 2, 8, generator=g)
    scores = pooled_scores(q, k, 4, 3, k_valid=torch.tensor([3, 0, 3, 3]))
    assert scores.shape == (2, 4, 3, 4) and (scores[..., 1] == 0).all()
    wide = pooled_scores(q, k.repeat_interleave(2, 2), 4, 3, k_valid=torch.tensor([3, 0, 3, 3]))
    assert torch.equal(scores, wide)


def test_sampling_every_token_gives_the_true_mass_and_a_seed_repeats():
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 22, 2, 8, generator=g), torch.randn(1, 18, 2, 8, generator=g)
    full = sampled_scores(q, k, 8, 8, samples_q=8, samples_k=8)
    torch.testing.assert_close(full, block_mass(q, k, 8, 8), rtol=0, atol=1e-6)
    one, two, other = (sampled_scores(q, k, 8, 8, samples_q=3, samples_k=3, seed=s) for s in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_row_maximum_counts_diffuse_rows_like_peaked_ones():
    # One query block with sampled logit rows [2,0|1,1] and [0,0|0,3]: the true softmax gives (.534, .870), row maxima
    # (1, 1).
    rows = torch.tensor([[2.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
    q, k = rows.reshape(1, 2, 1, 4), torch.eye(4).reshape(1, 4, 1, 4)
    paper = sampled_scores(q, k, 2, 2, samples_q=2, samples_k=2, reduction="max", scale=1.0)
    code = sampled_scores(q, k, 2, 2, samples_q=2, samples_k=2, reduction="row_max", scale=1.0)
    torch.testing.assert_close(paper.flatten(), torch.tensor([0.534, 0.870]), rtol=0, atol=1e-3)
    torch.testing.assert_close(code.flatten(), torch.ones(2))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    p=st.floats(0.05, 1.0),
    floor=st.integers(0, 3),
    cap=st.floats(0.2, 1.0),
    forced=st.booleans(),
)
def test_cumulative_selection_equals_a_loop(seed, rows, columns, p, floor, cap, forced):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 2, rows, columns, generator=g).softmax(-1)
    always = torch.rand(1, 1, rows, columns, generator=g) < 0.2 if forced else None
    chosen = select_top_p(scores, p, always=always, min_blocks=floor, max_share=cap)
    most = max(1, floor, int(cap * columns + 1e-9))
    for head in range(2):
        for row in range(rows):
            values = scores[0, head, row].double().tolist()
            must = [] if always is None else always[0, 0, row].nonzero().flatten().tolist()
            ranked = must_first = sorted(must, key=lambda j: (-values[j], j))
            ranked = must_first + sorted((j for j in range(columns) if j not in must), key=lambda j: (-values[j], j))
            total, before, wanted = sum(values), 0.0, 0
            for j in ranked:
                wanted += before < p * total - 1e-15 * (p == 1.0) and values[j] > 0
                before += values[j]
            budget = max(min(max(wanted, floor), most), len(must))
            assert chosen[0, head, row].nonzero().flatten().tolist() == sorted(ranked[:budget])


def test_top_k_counts_forced_blocks_and_never_takes_forbidden_ones():
    scores = torch.tensor([[[[5.0, 4.0, 3.0, 2.0], [1.0, -torch.inf, -torch.inf, 0.0]]]])
    always = torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    always[..., 3] = True
    assert lists_of(select_top_k(scores, 2, always=always)) == [[[0, 3], [0, 3]]]
    assert lists_of(select_top_k(scores, 3)) == [[[0, 1, 2], [0, 3]]]
    assert lists_of(select_top_k(scores, share=0.3)) == [[[0, 1], [0, 3]]]
    assert select_top_k(scores.masked_fill(scores == -torch.inf, 0), share=1.0).all()


def test_threshold_with_floor_and_cap():
    scores = torch.tensor([[[[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]]]])
    assert lists_of(select_threshold(scores, 0.3)) == [[[0, 1], [0]]]
    assert lists_of(select_threshold(scores, 0.2, max_share=0.5)) == [[[0, 1], [0, 1]]]
    assert lists_of(select_threshold(scores, 9.0, min_blocks=2)) == [[[0, 1], [0, 1]]]


def test_nan_scores_still_select_something():
    scores = torch.full((1, 1, 2, 3), torch.nan)
    for chosen in (select_top_k(scores, 1), select_top_p(scores, 0.5), select_threshold(scores, 0.1)):
        assert chosen.any(-1).all()


def test_ranking_identities(example):
    q, k = example
    base = pooled_scores(q, k, 4, 4, normalise="none")
    shifted = pooled_scores(q, k + 3.0, 4, 4, normalise="none")
    assert torch.equal(select_top_k(base, 2), select_top_k(shifted, 2))
    swapped = k.unflatten(1, (4, 4))[:, [2, 0, 3, 1]].flatten(1, 2)
    assert torch.equal(select_top_k(pooled_scores(q, swapped, 4, 4), 2), select_top_k(base, 2)[..., [2, 0, 3, 1]])
    assert select_top_p(base.softmax(-1), 1.0).all()


def test_lists_agree_with_the_mask():
    g = torch.Generator().manual_seed(2)
    mask = torch.rand(2, 3, 5, 7, generator=g) < 0.4
    count, index = block_lists(mask)
    rebuilt = torch.zeros_like(mask)
    for place in torch.cartesian_prod(*(torch.arange(s) for s in mask.shape[:3])).tolist():
        chosen = index[tuple(place)][: count[tuple(place)]].long()
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        rebuilt[tuple(place)][chosen] = True
    assert torch.equal(rebuilt, mask) and count.dtype == index.dtype == torch.int32


def test_own_blocks_of_unequal_sizes():
    assert own_blocks(2, 4, block_q=256, block_k=128)[0, 0].tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert torch.equal(own_blocks(3, 3)[0, 0], torch.eye(3, dtype=torch.bool))


def test_wrong_arguments_name_what_is_allowed():
    scores = torch.rand(1, 1, 2, 4)
    for call in (
        lambda: select_top_k(scores),
        lambda: select_top_k(scores, 1, share=0.5),
        lambda: select_top_k(scores, 0),
        lambda: select_top_p(scores, 1.5),
        lambda: select_top_p(scores - 1, 0.5),
        lambda: select_threshold(scores, 0.1, max_share=0.0),
        lambda: select_top_k(scores[0], 1),
        lambda: pooled_scores(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2), 2, 2, normalise="softmaxx"),
        lambda: antidiagonal_scores(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2), 4, 3),
    ):
        with pytest.raises(UsageError):
            call()
