"""Scores of groups of heads, of whole rows, from the top down and by content: worked examples, limits, brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from genkit.errors import UsageError
from genkit.kernels.scores import block_mass, pooled_scores, select_top_k
from genkit.kernels.scores.proxy import proxy_scores
from genkit.kernels.scores.routing import kmeans_order, reordered
from genkit.kernels.scores.rows import offset_scores, relative_places, row_mass, vertical_scores
from genkit.kernels.scores.tree import tree_scores


def wave(n, d, offset):
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + offset).reshape(n, d)


@pytest.fixture
def example():
    q = torch.stack([wave(16, 4, 0), 2 * wave(16, 4, 2)], 1)[None]
    k = torch.stack([wave(16, 4, 1), wave(16, 4, 1.5)], 1)[None]
    return q, k


def drawn(n=70, heads=4, key_heads=4, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, n, h, 8, generator=generator) for h in (heads, key_heads))


def lists_of(mask):
    return [[row.nonzero().flatten().tolist() for row in head] for head in mask[0]]


def test_proxy_of_the_worked_example(example):
    scores = proxy_scores(*example, 4, 4, groups=1, agreement=None)
    expected = torch.tensor([1.928449, 0.490846, 0.300342, 1.280362]) / 4
    torch.testing.assert_close(scores[0, 0, 0], expected, rtol=0, atol=1e-6)
    assert torch.equal(scores[0, 0], scores[0, 1])
    assert lists_of(select_top_k(scores, 2))[0] == [[0, 3], [1, 2], [1, 2], [0, 3]]


@pytest.mark.parametrize("key_heads", [4, 2])
def test_every_head_its_own_proxy_is_its_true_mass(key_heads):
    q, k = drawn(key_heads=key_heads)
    torch.testing.assert_close(proxy_scores(q, k, 16, 16, groups=4), block_mass(q, k, 16, 16))


def test_heads_that_agree_share_and_others_rank_for_themselves():
    q, k = drawn(n=64, heads=3, key_heads=3, batch=1)
    q[:, :, 1], k[:, :, 1] = q[:, :, 0], k[:, :, 0]
    shared = proxy_scores(q, k, 16, 16, groups=1, agreement=None)
    assert torch.equal(shared[:, 0], shared[:, 2])
    alone = proxy_scores(q, k, 16, 16, groups=1, agreement=0.9999)
    assert torch.equal(alone[:, 2], pooled_scores(q, k, 16, 16)[:, 2])
    paired = proxy_scores(q, k, 16, 16, groups=2)
    true = block_mass(q, k, 16, 16)
    for head in range(3):
        torch.testing.assert_close(paired[:, head], true[:, head])


def test_rows_of_a_batch_have_groups_of_their_own():
    q, k = drawn()
    both = proxy_scores(q, k, 16, 16, groups=2)
    for row in range(2):
        torch.testing.assert_close(
            both[row : row + 1], proxy_scores(q[row : row + 1], k[row : row + 1], 16, 16, groups=2)
        )


@pytest.mark.parametrize("n", [64, 70])
def test_all_rows_of_a_block_give_its_true_mass(n):
    q, k = drawn(n=n)
    torch.testing.assert_close(row_mass(q, k, 16, 16, rows=16), block_mass(q, k, 16, 16))
    one = row_mass(q, k, 16, 16, rows=1, seed=3)
    torch.testing.assert_close(one.sum(-1), torch.ones(2, 4, -(-n // 16)))
    assert torch.equal(one, row_mass(q, k, 16, 16, rows=1, seed=3))
    assert torch.equal(vertical_scores(one)[:, :, 1], one.mean(2))


def test_offsets_average_pairs_that_lie_equally_far_apart():
    places = torch.tensor(list(itertools.product(range(2), range(3), range(2))))
    mass = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    found = offset_scores(mass, relative_places(places))
    for row, column in itertools.product(range(12), repeat=2):
        apart = places[row] - places[column]
        alike = (places[:, None] - places[None] == apart).all(-1)
        torch.testing.assert_close(found[:, :, row, column], mass[:, :, alike].mean(-1), rtol=0, atol=1e-6)


def test_offsets_find_the_support_of_a_bias_that_depends_on_the_distance_alone():
    places = torch.tensor(list(itertools.product(range(3), range(4))))
    apart = places[:, None] - places[None]
    support = (apart[..., 0].abs() <= 1) & (apart[..., 1] == 0)
    noisy = torch.where(support, 1.0, 0.0)[None, None] * torch.rand(
        1, 1, 12, 12, generator=torch.Generator().manual_seed(2)
    )
    assert torch.equal(offset_scores(noisy, relative_places(places))[0, 0] > 0, support)


@pytest.mark.parametrize(("n", "block", "fan_out"), [(70, 4, 2), (403, 4, 3), (1000, 4, 2)])
def test_a_tree_of_which_everything_is_opened_is_pooling(n, block, fan_out):
    q, k = drawn(n=n, heads=2, key_heads=1, batch=1)
    blocks = -(-n // block)
    found = tree_scores(q, k, block, block, blocks, fan_out=fan_out, slack=fan_out**8)
    expected = pooled_scores(q, k, block, block, normalise="none")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tree_scores_few_blocks_and_finds_a_planted_one():
    q, k = drawn(n=4096, heads=1, key_heads=1, batch=1)
    q, k = 0.01 * q, 0.01 * k
    k[:, 1024 + 64 : 1024 + 128] += 5
    q[:] += 1
    found = tree_scores(q, k, 16, 16, 4, fan_out=4)
    reached = found > -torch.inf
    assert 4 <= reached.sum(-1).min() and reached.sum(-1).max() <= 40 < 256
    assert all(set(row) == {68, 69, 70, 71} for row in lists_of(select_top_k(found, 4))[0])


def test_clusters_are_told_apart_and_the_way_back_is_exact():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (2, 3, 96), generator=generator)
    centres = 6 * torch.eye(8)[:4]
    x = (centres[label] + 0.1 * torch.randn(2, 3, 96, 8, generator=generator)).transpose(1, 2)
    order = kmeans_order(x, 8, iterations=6)
    assert torch.equal(order.sort(-1).values, torch.arange(96).expand(2, 3, -1))
    for row, head in itertools.product(range(2), range(3)):
        sorted_labels = label[row, head][order[row, head]]
        # every true cluster is one run
        assert (sorted_labels.diff() != 0).sum() == len(sorted_labels.unique()) - 1
    assert torch.equal(reordered(reordered(x, order), order.argsort(-1)), x)
    assert torch.equal(order, kmeans_order(x, 8, iterations=6))


def test_what_cannot_be_scored_is_refused():
    q, k = drawn()
    for wrong in (0, 5, True, 1.5):
        with pytest.raises(UsageError, match="groups must be"):
            proxy_scores(q, k, 16, 16, groups=wrong)
    with pytest.raises(UsageError, match="fan_out >= 2"):
        tree_scores(q, k, 16, 16, 4, fan_out=1)
    with pytest.raises(UsageError, match="samples per block"):
        row_mass(q, k, 16, 16, rows=17)
    with pytest.raises(UsageError, match="square map"):
        offset_scores(torch.zeros(1, 1, 3, 4), torch.zeros(3, 3, dtype=torch.int64))
    for settings in ((0, 4), (71, 4), (4, 0)):
        with pytest.raises(UsageError, match="must be a whole number"):
            kmeans_order(q, *settings)
