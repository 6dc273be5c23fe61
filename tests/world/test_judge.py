"""The judge against ground truth, and against pictures that show nothing certain."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.errors import UsageError
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, FIRST_BACKGROUNDS, MOTIONS, SHAPES


def clips(count: int, frames: int, size: int, seed: int, **options):
    """Scenes whose actors never touch, with their clips."""
    rng = np.random.default_rng(seed)
    while count:
        scene = world.draw_scene(rng, "any", moving=frames > 1, **options)
        tracks = world.lay_out(scene, frames, size, size, rng)
        if world.actor_gap(tracks) > 0:
            count -= 1
            yield scene, world.render_clip(scene, tracks, size, size)


@pytest.mark.parametrize(
    ("frames", "size", "count", "options"),
    [
        (17, 96, 60, {"actors": 1}),
        (25, 128, 60, {}),
        (9, 128, 30, {"actors": 1}),
        (49, 128, 10, {}),
        (17, 256, 8, {}),
        (1, 128, 40, {}),
    ],
)
def test_ground_truth_is_read_right(frames, size, count, options):
    results = [
        world.score(scene, world.judge_clip(clip), frames > 1)
        for scene, clip in clips(count, frames, size, 7, **options)
    ]
    right = [value for result in results for value in result.values()]
    assert np.mean(right) >= 0.99


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_told_apart(motion):
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        if shape == "circle" and motion == "spin":
            continue
        scene = world.Scene((world.Actor("yellow", shape, "medium", motion),), "purple")
        clip = world.render_clip(scene, world.lay_out(scene, 25, 128, 128, rng), 128, 128)
        assert world.judge_clip(clip).actors[0].motion == motion


def test_wrong_attributes_are_not_accepted():
    scene, clip = next(clips(1, 17, 128, 11, actors=1))
    verdict = world.judge_clip(clip)
    actor = scene.actors[0]
    other = world.Actor("cyan" if actor.colour != "cyan" else "red", actor.shape, actor.size, actor.motion)
    result = world.score(
        world.Scene((other,), scene.background if scene.background != other.colour else "black"), verdict
    )
    assert not result["colour"] and not result["all"]


def test_noise_and_blur_are_unclear_not_guessed():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 96, 96, 3), dtype=np.uint8)
    verdict = world.judge_clip(noise)
    assert verdict.background == "unclear" and not verdict.actors and verdict.notes

    scene = world.Scene((world.Actor("red", "cross", "small", "still"),), "white")
    clip = world.render_clip(scene, world.lay_out(scene, 9, 96, 96, rng), 96, 96).astype(np.float32)
    for axis in (1, 2):
        for _ in range(60):
            clip = (np.roll(clip, 1, axis) + 2 * clip + np.roll(clip, -1, axis)) / 4
    blurred = world.judge_clip(clip.round().astype(np.uint8))
    assert all(actor.shape != "cross" for actor in blurred.actors)


def test_a_flickering_object_has_no_certain_motion():
    scene, clip = next(clips(1, 17, 128, 5, actors=1))
    clip = clip.copy()
    clip[4:9] = clip[0, 0, 0]
    verdict = world.judge_clip(clip)
    assert all(actor.motion == "unclear" for actor in verdict.actors)
    assert any("frames" in note for note in verdict.notes)


def test_a_jumping_object_has_no_certain_motion():
    scene = world.Scene((world.Actor("red", "square", "medium", "right"),), "black")
    clip = world.render_clip(scene, world.lay_out(scene, 17, 128, 128, np.random.default_rng(2)), 128, 128)
    shuffled = clip[np.random.default_rng(0).permutation(17)]
    assert world.judge_clip(shuffled).actors[0].motion == "unclear"


def test_two_objects_of_one_colour_are_two_clear_shapes():
    scene = world.Scene((world.Actor("red", "circle", "small"),), "black")
    rng = np.random.default_rng(0)
    parts = [world.render_clip(scene, world.lay_out(scene, 5, 128, 128, rng), 128, 128) for _ in range(6)]
    merged = np.maximum(parts[0], np.roll(parts[0], 40, axis=2))
    seen = world.judge_clip(merged).actors
    assert [(actor.shape, actor.motion) for actor in seen] == [("circle", "still")] * 2
    assert not world.score(scene, world.judge_clip(merged))["count"]


def test_wrong_arrays_are_refused():
    with pytest.raises(UsageError, match="uint8"):
        world.judge_clip(np.zeros((4, 8, 8, 3), dtype=np.float32))


def test_a_rough_outline_is_unclear_but_has_a_nearest_shape():
    rng = np.random.default_rng(3)
    scene = world.Scene((world.Actor("red", "circle", "big"),), "black")
    clip = world.render_clip(scene, world.lay_out(scene, 5, 128, 128, rng), 128, 128)
    rows, columns = np.nonzero(clip[0, :, :, 0] > 128)
    # A bite out of the right side, down to the centre.
    middle, centre = int(rows.mean()), int(columns.mean())
    clip[:, middle - 9 : middle + 9, centre + 2 :] = clip[0, 0, 0]
    seen = world.judge_clip(clip).actors[0]
    assert seen.shape == "unclear"
    assert seen.nearest_shape != "unclear"
    result = world.score(scene, world.judge_clip(clip))
    assert not result["shape"] and not result["all"] and result["nearest shape"] == (seen.nearest_shape == "circle")


def twins(count: int, seed: int):
    """Scenes of two objects, and their clips with the second object in the first one's colour."""
    rng = np.random.default_rng(seed)
    while count:
        scene = world.draw_scene(rng, "any", actors=2)
        tracks = world.lay_out(scene, 25, 128, 128, rng)
        if world.actor_gap(tracks) <= 0:
            continue
        count -= 1
        clip = world.render_clip(scene, tracks, 128, 128).astype(np.float32)
        own, twin, ground = (
            np.array(table[name], dtype=np.float32)
            for table, name in (
                (COLOURS, scene.actors[0].colour),
                (COLOURS, scene.actors[1].colour),
                (BACKGROUNDS, scene.background),
            )
        )
        # Objects never touch, so every pixel lies between the ground and one of the colours.
        axis = twin - ground
        share = np.clip(((clip - ground) @ axis) / (axis @ axis), 0, 1)[..., None]
        fits = np.linalg.norm(clip - ground - share * axis, axis=-1, keepdims=True) < 3
        yield scene, np.where(fits, ground + share * (own - ground), clip).round().astype(np.uint8)


def test_two_objects_of_one_colour_are_counted_and_told_apart():
    right = []
    for scene, clip in twins(24, 5):
        seen = world.judge_clip(clip).actors
        right.append(sorted((a.shape, a.motion) for a in seen) == sorted((a.shape, a.motion) for a in scene.actors))
        assert len(seen) == 2 and not world.score(scene, world.judge_clip(clip))["all"]
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_clips_on_every_background_are_read_right(background):
    rng = np.random.default_rng(2)
    for _ in range(4):
        scene = world.draw_scene(rng, "any", backgrounds=(background,))
        tracks = world.lay_out(scene, 17, 128, 128, rng)
        assert scene.background == background
        if world.actor_gap(tracks) > 0:
            assert world.score(scene, world.judge_clip(world.render_clip(scene, tracks, 128, 128)))["all"]


def test_scenes_are_drawn_on_the_first_backgrounds_unless_others_are_named():
    rng = np.random.default_rng(0)
    assert {world.draw_scene(rng).background for _ in range(80)} == set(FIRST_BACKGROUNDS)
    assert {world.draw_picture(rng, 64, 64)[0].background for _ in range(80)} == set(FIRST_BACKGROUNDS)
    scenes = [world.draw_scene(rng, backgrounds=("yellow", "orange")) for _ in range(40)]
    assert {scene.background for scene in scenes} == {"yellow", "orange"}
    assert all(scene.background not in [actor.colour for actor in scene.actors] for scene in scenes)
    with pytest.raises(UsageError, match="backgrounds"):
        world.draw_scene(rng, backgrounds=("yelow",))
    told = [world.caption(scene, rng) for scene in scenes]
    assert not any("a orange" in text or "an yellow" in text for text in told)


def blobs(counts: list[int], side: int) -> np.ndarray:
    """A clip with so many red squares in its frames, none where one is in the next row or column."""
    clip = np.zeros((len(counts), 128, 128, 3), np.uint8) + np.array(BACKGROUNDS["black"], np.uint8)
    for frame, count in zip(clip, counts, strict=True):
        for number in range(count):
            top, left = 4 + 30 * (number // 4), 4 + 30 * (number % 4)
            frame[top : top + side, left : left + side] = COLOURS["red"]
    return clip


@pytest.mark.parametrize(
    "counts", [[1, 1, 3, 3], [1, 4], [2, 5, 2, 5], [0, 1, 3], [3, 1, 0, 0], [1] * 5, [16, 1, 2, 7]]
)
@pytest.mark.parametrize("side", [7, 9, 14, 22])
def test_a_clip_whose_objects_come_and_go_is_read_without_fail(counts, side):
    seen = world.judge_clip(blobs(counts, side))
    assert len(seen.actors) <= max(counts)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 0, 8, 3), (2, 8, 0, 3), (0, 0, 0, 3), (1, 1, 1, 3), (2, 1, 40, 3)])
def test_clips_of_no_or_few_pixels_are_unclear_or_empty(shape):
    for value in (0, 255):
        verdict = world.judge_clip(np.full(shape, value, np.uint8))
        assert verdict.actors == () and (verdict.background == "unclear") == (0 in shape)
        assert 0 not in shape or verdict.notes == ("background: the clip has no pixels",)


def test_objects_that_are_there_in_half_of_the_frames_are_not_taken_for_a_number_between():
    # One in half of the frames, three in the others: two are in none of them.
    assert len(world.judge_clip(blobs([1, 1, 3, 3], 22)).actors) == 1
