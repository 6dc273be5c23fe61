"""Events read back from pixels: times, kinds, pitches and sides, against the world's own."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.world.sound import PITCHES

FPS, FRAMES, SIDE = 8.0, 25, 128


def clip_of(actor: world.Actor, seed: int, holds: bool = True):
    rng = np.random.default_rng(seed)
    scene = world.Scene((actor,), "white")
    tracks = world.lay_out(scene, FRAMES, SIDE, SIDE, rng, holds=holds)
    clip = world.render_clip(scene, tracks, SIDE, SIDE)
    return world.find_events(scene, tracks, FPS, SIDE), world.watch(world.judge_clip(clip), FPS, SIDE)


@pytest.mark.parametrize("seed", range(3))
def test_bounces_are_seen_when_they_happen(seed):
    true, seen = clip_of(world.Actor("green", "circle", "medium", "bounce"), seed)
    assert [event.kind for event in seen] == ["bounce"] * len(true)
    assert len(true) >= 2
    for event, sight in zip(true, seen, strict=True):
        assert abs(event.time - sight.time) < 0.02
        assert sight.pitch == PITCHES["green"] and abs(sight.pan - event.pan) < 0.1


@pytest.mark.parametrize("motion", ["left", "down", "up_right"])
def test_start_and_stop_are_seen_when_they_happen(motion):
    true, seen = clip_of(world.Actor("red", "square", "small", motion), 4)
    assert [event.kind for event in seen] == ["start", "stop"] == [event.kind for event in true]
    for event, sight in zip(true, seen, strict=True):
        assert abs(event.time - sight.time) < 0.03
        assert sight.pitch == event.pitch and abs(sight.pan - event.pan) < 0.1


def test_what_moves_all_the_time_or_never_gives_no_event():
    for motion, holds in (("right", False), ("still", True), ("grow", True)):
        true, seen = clip_of(world.Actor("blue", "square", "medium", motion), 2, holds)
        assert true == [] and seen == []


def test_captions_count_bounces():
    scene = world.Scene((world.Actor("green", "circle", "medium", "bounce"),), "black")
    assert world.caption(scene, counts=(2,)) == "a green circle bounces twice on a black background"
    assert world.caption(scene, counts=(None,)) == world.caption(scene)
    assert world.caption(scene, counts=(3,), background=False) == "a green circle bounces three times"
    said = {world.caption(scene, np.random.default_rng(i), counts=(1,), background=i % 2 == 0) for i in range(40)}
    assert set(" ".join(said).replace(",", "").split()) <= set(world.sound_words())
    assert "twice" in world.sound_words() and "twice" not in world.words()


def test_a_third_of_the_scenes_bounces_on_purpose():
    rng = np.random.default_rng(0)
    scenes = [world.draw_sounding_scene(rng, "held_out_tuple", 1) for _ in range(200)]
    bouncing = sum(scene.actors[0].motion == "bounce" for scene in scenes)
    assert 60 < bouncing < 120
    assert {world.split_of(scene) for scene in scenes} == {"held_out_tuple"}
