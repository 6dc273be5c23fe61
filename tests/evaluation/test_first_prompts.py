"""The prompts people type first: written as the models read them, and judged by what they say."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.evaluation.first_prompts import CLIP_PROMPTS, PICTURE_PROMPTS, share_right
from genkit.world.picture_scene import place
from genkit.world.vocabulary import COLOURS


def test_there_are_forty_and_every_colour_is_a_background_of_pictures():
    assert len({prompt.text for prompt in (*CLIP_PROMPTS, *PICTURE_PROMPTS)}) >= 36
    assert len(CLIP_PROMPTS) + len(PICTURE_PROMPTS) == 40
    assert set(COLOURS) <= {prompt.shows.background for prompt in PICTURE_PROMPTS if "background" in prompt.said}
    for vocabulary, prompts in ((world.words(), CLIP_PROMPTS), (world.picture_words(), PICTURE_PROMPTS)):
        for prompt in prompts:
            assert set(prompt.text.replace(",", "").split()) <= set(vocabulary), prompt.text


@pytest.mark.parametrize("prompt", PICTURE_PROMPTS, ids=lambda prompt: prompt.text)
def test_the_right_picture_is_right_and_another_one_wrong(prompt):
    rng = np.random.default_rng(0)
    placement = next(filter(None, (place(prompt.shows, 128, 128, rng) for _ in range(20))))
    image = world.render_picture(prompt.shows, placement, 128, 128)
    other = PICTURE_PROMPTS[0] if prompt is not PICTURE_PROMPTS[0] else PICTURE_PROMPTS[1]
    assert prompt.right(image) and not other.right(image)


@pytest.mark.parametrize("prompt", CLIP_PROMPTS, ids=lambda prompt: prompt.text)
def test_the_right_clip_is_right_and_another_one_wrong(prompt):
    rng = np.random.default_rng(1)
    tracks = world.lay_out(prompt.shows, 17, 128, 128, rng)
    clip = world.render_clip(prompt.shows, tracks, 128, 128)
    other = CLIP_PROMPTS[3] if prompt is not CLIP_PROMPTS[3] else CLIP_PROMPTS[4]
    share, found = share_right([prompt, other], np.stack([clip, clip]))
    assert found == [True, False] and share == 0.5


def test_what_is_unsaid_is_not_judged():
    prompt = next(prompt for prompt in CLIP_PROMPTS if prompt.text == "a red circle moves right")
    rng = np.random.default_rng(2)
    scene = world.Scene((world.Actor("red", "circle", "big", "right"),), "pink")
    clip = world.render_clip(scene, world.lay_out(scene, 17, 128, 128, rng), 128, 128)
    assert prompt.said == {"count", "colour", "shape", "motion"} and prompt.right(clip)
