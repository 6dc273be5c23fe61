"""Concepts are drawn from a seed, named in their captions, and told from everything known by the judge."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.errors import UsageError
from genkit.world import concepts
from genkit.world.concepts.outlines import OUTLINES
from genkit.world.concepts.reading import Mask
from genkit.world.scene import draw_scene, lay_out
from genkit.world.vocabulary import SIZES

COUNT = 40


@pytest.mark.parametrize("concept", concepts.SHAPE_CONCEPTS)
def test_every_clip_of_a_new_shape_shows_it_and_says_its_word(concept):
    rng = np.random.default_rng(0)
    samples = [concepts.draw_concept_clip(concept, rng, 3, 128, 128) for _ in range(COUNT)]
    assert all(concepts.shows_concept(sample.pixels, concept) for sample in samples)
    assert all(concept in sample.caption.split() and "triangle" not in sample.caption for sample in samples)


def test_every_zigzag_goes_across_and_up_and_down_and_no_known_motion_does():
    rng = np.random.default_rng(7)
    draw = concepts.draw_concept_clip
    clips = [draw("zigzag", rng, 25, 128, 128, SIZES) for _ in range(16)]
    assert all(concepts.shows_concept(sample.pixels, "zigzag") for sample in clips)
    assert all("zigzags" in sample.caption.split() and "moves" not in sample.caption for sample in clips)
    known = [draw("zigzag", rng, 25, 128, 128, shown=False) for _ in range(16)]
    assert not any(concepts.shows_concept(sample.pixels, "zigzag") for sample in known)


@pytest.mark.parametrize("concept", concepts.PICTURE_CONCEPTS)
def test_every_picture_of_a_concept_shows_it_and_says_its_word(concept):
    rng = np.random.default_rng(1)
    samples = [concepts.draw_concept_picture(concept, rng, 128, 128) for _ in range(COUNT)]
    assert np.mean([concepts.shows_concept(sample.pixels, concept) for sample in samples]) >= 0.97
    assert all(concept in sample.caption.split() for sample in samples)


def test_what_is_known_is_no_concept():
    rng = np.random.default_rng(2)
    wrong = dict.fromkeys(concepts.CONCEPTS, 0)
    for number in range(2 * COUNT):
        if number % 2:
            picture, placement = world.draw_picture(rng, 128, 128, "any")
            pixels = world.render_picture(picture, placement, 128, 128)[None]
        else:
            scene = draw_scene(rng, "any", actors=1)
            pixels = world.render_clip(scene, lay_out(scene, 3, 128, 128, rng), 128, 128)
        for concept in concepts.CONCEPTS:
            wrong[concept] += concepts.shows_concept(pixels, concept)
    assert max(wrong.values()) <= 0.02 * 2 * COUNT, wrong


def test_one_concept_is_not_another():
    rng = np.random.default_rng(3)
    for concept in concepts.SHAPE_CONCEPTS:
        pixels = concepts.draw_concept_clip(concept, rng, 1, 128, 128).pixels
        assert [name for name in concepts.SHAPE_CONCEPTS if concepts.shows_concept(pixels, name)] == [concept]


def test_clips_without_the_concept_show_known_shapes_under_their_names():
    rng = np.random.default_rng(4)
    for _ in range(COUNT):
        sample = concepts.draw_concept_clip("ring", rng, 2, 128, 128, shown=False)
        assert "ring" not in sample.caption.split() and not concepts.shows_concept(sample.pixels, "ring")
        assert world.split_of(sample.scene) == "train"


def test_everything_follows_from_the_seed():
    first, again = (concepts.draw_concept_clip("ring", np.random.default_rng(5), 9, 96, 96, fps=8.0) for _ in "ab")
    assert first.caption == again.caption and np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.sound, again.sound) and first.sound.shape == (2, 18000)


def test_new_shapes_are_about_as_large_as_known_ones_and_stay_in_the_drawn_window():
    grid = (np.arange(400) + 0.5) / 400 * 4 - 2
    u, v = np.meshgrid(grid, grid)
    for outline in OUTLINES.values():
        inside = outline(u, v, np.ones_like(u)) < 0
        assert 0.6 < inside.sum() * (4 / 400) ** 2 / np.pi < 1.25
        assert np.hypot(u, v)[inside].max() <= 1.556


def test_a_mask_is_filled_where_the_ground_does_not_reach():
    alpha = np.zeros((20, 20))
    alpha[4:16, 4:16] = 1.0
    alpha[8:12, 8:12] = 0.0
    filled = Mask(alpha, "red").filled()
    assert filled.area == 144 and Mask(alpha, "red").area == 128


def test_flat_and_noisy_pictures_show_no_concept():
    noise = np.random.default_rng(6).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    for pixels in (np.zeros((1, 64, 64, 3), np.uint8), noise):
        assert not any(concepts.shows_concept(pixels, concept) for concept in concepts.CONCEPTS)


def test_unknown_concepts_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"concept: got 'cat'.*ring, heart"):
        concepts.draw_concept_clip("cat", np.random.default_rng(0), 1, 64, 64)
    with pytest.raises(UsageError, match="concept"):
        concepts.draw_concept_clip("sketch", np.random.default_rng(0), 1, 64, 64)
