"""From attention maps to parts of a picture: numbers worked out by hand from the formulas of AttenCraft."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from genkit.training.lora.words.masks import (
    attention_losses,
    classes,
    divergence,
    masks_of,
    min_max,
    refined,
    similarity,
)
from genkit.training.lora.words.settings import REWEIGHTED, UNIFORM
from genkit.training.lora.words.subjects import ALL, FLOOR, Subjects


def soft(mask) -> torch.Tensor:
    return torch.as_tensor(mask, dtype=torch.float64).flatten().softmax(0)


def half() -> torch.Tensor:
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    return mask


def test_divergences_of_masks():
    left = half()
    assert divergence(soft(left), soft(left)).item() == pytest.approx(0, abs=1e-15)
    assert divergence(soft(left), soft(1 - left)).item() == pytest.approx(0.110944, abs=1e-6)
    assert divergence(soft(left), soft(0 * left)).item() == pytest.approx(0.028536, abs=1e-6)
    one, other = torch.eye(4)[:2]
    assert divergence(soft(one), soft(other)).item() == pytest.approx(0.072141, abs=1e-6)
    assert divergence(one, other).item() == pytest.approx(math.log(2))


def test_the_loss_of_a_map_is_zero_where_it_is_its_mask_and_has_a_gradient_elsewhere():
    left = half()
    maps = torch.stack([3 * left + 5, 1 - left]).double().requires_grad_()
    found = attention_losses(maps, torch.stack([left, left]).double())
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1].item() == pytest.approx(0.110944, abs=1e-6)
    rough = torch.rand(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.autograd.gradcheck(lambda value: attention_losses(value, torch.stack([left, 1 - left]).double()), rough)


def test_a_pixel_belongs_to_the_map_that_exceeds_both_others_by_more_than_the_threshold():
    maps = torch.tensor([[0.9, 0.5, 0.2, 0.3], [0.1, 0.45, 0.25, 0.1], [0.2, 0.3, 0.6, 0.35]]).view(3, 1, 4)
    assert classes(maps, 0.1).tolist() == [[0, -1, 2, -1]]
    assert classes(maps, 0.04).tolist() == [[0, 0, 2, 2]]
    assert masks_of(maps, 0.1) is None  # the second word has no pixel
    maps[1, 0, 1] = 0.8
    masks = masks_of(maps, 0.1)
    assert masks.tolist() == [[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]]]


def test_maps_spread_along_self_attention():
    links = torch.tensor([[0.8, 0.2, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0.7, 0.3], [0, 0, 0.3, 0.7]])
    power = torch.linalg.matrix_power(min_max(links), 4)
    power = min_max(power)
    assert power[0].tolist() == pytest.approx([1, 0.770538, 0, 0], abs=1e-6)
    assert power[2].tolist() == pytest.approx([0, 0, 0.907932, 0.862606], abs=1e-6)
    maps = torch.tensor([0.9, 0.3, 0.2, 0.1]).view(1, 2, 2)

    def spread(value, links=links):
        flat = value.flatten(1).T
        for _ in range(4):
            flat = links @ flat
        return flat.T.reshape(value.shape)

    wanted = [1, 0.802322, 0.001627, 0]
    assert refined(maps, spread).flatten().tolist() == pytest.approx(wanted, abs=1e-5)
    by_power = refined(maps, lambda value: (power @ value.flatten(1).T).T.reshape(value.shape))
    assert by_power.flatten().tolist() == pytest.approx(wanted, abs=1e-5)


def plain_similarity(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """Wang et al. 2004, window by window."""
    found = []
    for top in range(x.shape[0] - side + 1):
        for left in range(x.shape[1] - side + 1):
            a, b = (image[top : top + side, left : left + side].ravel() for image in (x, y))
            covariance = np.cov(a, b)
            above = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
            below = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)
            found.append(above / below)
    return float(np.mean(found))


@pytest.mark.parametrize(("shape", "side"), [((16, 12), 7), ((6, 9), 5)])
def test_similarity_is_that_of_every_window(shape, side):
    rng = np.random.default_rng(0)
    one, other = (rng.random(shape) > 0.5 for _ in range(2))
    found = similarity(torch.tensor(np.stack([one, one])).float(), torch.tensor(np.stack([other, one])).float())
    assert found[0].item() == pytest.approx(plain_similarity(one.astype(float), other.astype(float), side), abs=1e-6)
    assert found[1].item() == pytest.approx(1)


PAIR = Subjects(("a <a>", "a <b>"), ("x", "y"), "on sand ")


def test_uniform_sampling_draws_every_choice_alike_and_every_order():
    rng = np.random.default_rng(0)
    counts = Counter(PAIR.drawn(UNIFORM, (0, 0), rng) for _ in range(30_000))
    both = counts[0, 1] + counts[1, 0]
    for found in (counts[0,], counts[1,], both):
        assert found / 30_000 == pytest.approx(1 / 3, abs=0.01)
    assert counts[0, 1] / both == pytest.approx(0.5, abs=0.02)


def test_of_three_words_every_choice_is_drawn_alike():
    three = Subjects(("a <a>", "a <b>", "a <c>"), ("x", "y", "z"))
    rng = np.random.default_rng(2)
    counts = Counter(frozenset(three.drawn(UNIFORM, (0, 0, 0), rng)) for _ in range(20_000))
    assert len(counts) == 7 and len(three.orders) == 15
    assert all(count / 20_000 == pytest.approx(1 / 7, abs=0.01) for count in counts.values())


@pytest.mark.parametrize(("losses", "first"), [((0.03, 0.01), 0.75), ((1.0, 0.0), 1 / (1 + FLOOR)), ((0, 0), 0.5)])
def test_reweighted_sampling_draws_words_in_proportion_to_their_losses(losses, first):
    rng = np.random.default_rng(1)
    counts = Counter(
        len(order) if len(order) > 1 else order
        for order in (PAIR.drawn(REWEIGHTED, losses, rng) for _ in range(30_000))
    )
    assert counts[2] / 30_000 == pytest.approx(ALL, abs=0.01)
    assert counts[0,] / (counts[0,] + counts[1,]) == pytest.approx(first, abs=0.015)


def test_prompts_name_some_subjects_and_keep_what_is_said_around_them():
    found = Subjects.of(("a <b>=y", "the big <a>=x"), "on sand the big <a>, a <b> and nothing more")
    assert found.words == ("<a>", "<b>") and found.starts == ("x", "y")
    assert found.prompt((1, 0)) == "on sand a <b> and the big <a> and nothing more"
    assert found.prompt((1,)) == "on sand a <b> and nothing more"
    assert set(found.orders) == {(0,), (1,), (0, 1), (1, 0)}
