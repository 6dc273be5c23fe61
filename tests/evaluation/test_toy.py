"""Prompts and judged accuracy of toy-world models."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.errors import UsageError
from genkit.evaluation.sheet import contact_sheet
from genkit.evaluation.toy import draw_prompts, judge_clips


def render(scene: world.Scene, seed: int) -> np.ndarray:
    tracks = world.lay_out(scene, 17, 128, 128, np.random.default_rng(seed))
    return world.render_clip(scene, tracks, 128, 128)


def test_prompts_follow_from_seed_and_split():
    first = draw_prompts("held_out_pair", 10, seed=3)
    assert first == draw_prompts("held_out_pair", 10, seed=3)
    assert first != draw_prompts("held_out_pair", 10, seed=4)
    assert all(world.split_of(scene) == "held_out_pair" for scene, _ in first)
    assert all(text == world.caption(scene) for scene, text in first)
    with pytest.raises(UsageError, match="allowed: train"):
        draw_prompts("test", 3)


def test_true_clips_score_full_marks_and_swapped_ones_do_not():
    scenes = [scene for scene, _ in draw_prompts("train", 12, seed=5)]
    clips = np.stack([render(scene, index) for index, scene in enumerate(scenes)])
    right, _ = judge_clips(scenes, clips)
    assert right.clips == 12 and right.right["all"] == 1.0
    swapped, _ = judge_clips(scenes, np.roll(clips, 1, axis=0))
    assert swapped.right["colour"] < 0.5 and swapped.right["all"] < 0.2
    assert 0 < swapped.error("colour") < 0.2


def test_contact_sheet_shows_first_and_last_frame():
    clip = render(world.Scene((world.Actor("red", "square", "small", "right"),), "white"), 0)
    page = contact_sheet([clip, clip, clip], ["a" * 200, "b", ""], columns=2, frames=3)
    assert page.dtype == np.uint8 and page.shape[1] > 2 * 3 * 128
    assert (page[6 + 18 : 6 + 18 + 128, 6 : 6 + 128] == clip[0]).all()
    assert (page[6 + 18 : 6 + 18 + 128, 6 + 2 * 130 : 6 + 2 * 130 + 128] == clip[-1]).all()
