"""Free paths stay inside the canvas, are drawn where they say, and the judge finds their boxes again."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.errors import UsageError
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_boxes import draw_box_cases, judge_boxes
from genkit.world.judge import judge_clip
from genkit.world.render import render_clip
from genkit.world.scene import Actor, Scene, draw_scene
from genkit.world.subject import actor_boxes
from genkit.world.track import ARC, KEYS, box_overlap, direction_of, draw_track, with_motion


@pytest.mark.parametrize("kind", [KEYS, ARC])
@pytest.mark.parametrize("area", [(1, 64, 64), (2, 64, 96), (9, 96, 96), (17, 128, 128)])
def test_paths_stay_inside_and_are_no_faster_than_the_worlds(kind, area):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = draw_scene(rng, actors=1, moving=False)
        tracks = draw_track(scene, *area, rng, kind)
        boxes = np.array(actor_boxes(scene, tracks, *area[1:]))
        sides = (boxes[:, 2:] - boxes[:, :2]) * [area[2], area[1]]
        low = {"small": 20, "medium": 19, "big": 36}[scene.actors[0].size]
        assert (boxes >= 0).all() and (boxes <= 1).all() and (sides > low).all()  # not cut by the canvas' edge
        steps = np.hypot(np.diff(tracks.x[0]), np.diff(tracks.y[0]))
        assert (steps <= 5.01).all() and tracks.x.shape == (1, area[0])


def test_the_same_seed_the_same_path():
    scene = draw_scene(np.random.default_rng(1), actors=1, moving=False)
    one, two, three = (draw_track(scene, 9, 96, 96, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.x, two.x) and not np.array_equal(one.x, three.x)


def test_the_judge_finds_boxes_and_direction_again():
    """Of what the world draws: overlap above 0.9 in every clip, everything right, the caption's direction read back."""
    request = ClipRequest(17, 128, 128)
    scores = []
    for case in draw_box_cases("train", 16, request, 3):
        clip = render_clip(case.scene, case.tracks, 128, 128)
        scores.append(judge_boxes(case, clip))
        assert scores[-1].overlap > 0.9 and scores[-1].distance < 0.01 and all(scores[-1].right.values())
        assert case.scene.actors[0].motion == direction_of(case.tracks)
        moved = np.roll(clip, 40, axis=2)
        assert judge_boxes(case, moved).overlap < 0.5
    assert 0.95 < np.mean([score.overlap for score in scores]) < 1


def test_a_clip_without_the_object_overlaps_nothing():
    case = draw_box_cases("train", 1, ClipRequest(5, 96, 96), 0)[0]
    found = judge_boxes(case, np.full((5, 96, 96, 3), 128, np.uint8))
    assert found.overlap == 0 and np.isnan(found.distance) and not found.right["object"]
    still = with_motion(Scene((Actor("red", "square"),), "white"), "still")
    assert judge_clip(np.full((2, 64, 64, 3), 240, np.uint8)).actors == () and still.actors[0].motion == "still"


def test_overlap_by_hand():
    one, other = (
        np.array([0.0, 0.0, 2.0, 2.0]),
        np.array([[1.0, 1.0, 3.0, 3.0], [0, 0, 2, 2], [2, 0, 4, 2], [np.nan] * 4]),
    )
    assert np.allclose(box_overlap(one, other), [1 / 7, 1, 0, 0])


@pytest.mark.parametrize("kind", ["spiral", KEYS])
def test_paths_that_are_none(kind):
    actors = (Actor("red", "square"), Actor("blue", "circle"))[: 2 if kind == KEYS else 1]
    with pytest.raises(UsageError, match="allowed: keys or arc of one actor"):
        draw_track(Scene(actors, "white"), 9, 96, 96, np.random.default_rng(0), kind)
