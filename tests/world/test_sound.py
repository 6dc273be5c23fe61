"""Sound events, their rendering and the judge's ears."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import world
from genkit.errors import UsageError
from genkit.world.sound import PITCHES, SAMPLE_RATE

FPS = 8.0


def bouncing(seed: int, colour: str = "green", frames: int = 49):
    rng = np.random.default_rng(seed)
    scene = world.Scene((world.Actor(colour, "circle", "medium", "bounce"),), "black")
    tracks = world.lay_out(scene, frames, 128, 128, rng)
    return scene, tracks, world.find_events(scene, tracks, FPS, 128)


def test_bounces_are_where_the_track_is_lowest():
    for seed in range(10):
        _, tracks, events = bouncing(seed)
        assert len(events) >= 3
        for event in events:
            frame = event.time * FPS
            near = slice(max(int(frame) - 3, 0), int(frame) + 5)
            assert abs(near.start + tracks.y[0, near].argmax() - frame) <= 1.0


def test_holds_give_a_start_and_a_stop():
    rng = np.random.default_rng(0)
    scene = world.Scene((world.Actor("red", "square", "small", "right"),), "gray")
    tracks = world.lay_out(scene, 25, 128, 128, rng, holds=True)
    events = world.find_events(scene, tracks, FPS, 128)
    assert [event.kind for event in events] == ["start", "stop"]
    assert events[0].pan < events[1].pan
    moving = np.nonzero(np.diff(tracks.x[0]) > 0.01)[0]
    assert abs(moving[0] - events[0].time * FPS) <= 1 and abs(moving[-1] + 1 - events[1].time * FPS) <= 1


@pytest.mark.parametrize("colour", list(PITCHES))
def test_ears_hear_what_was_played(colour):
    scene, _, events = bouncing(4, colour if colour != "black" else "red")
    score = world.compare_events(events, world.listen(world.render_sound(events, 49 / FPS), SAMPLE_RATE))
    assert score.f1 == 1.0
    assert abs(score.offset) <= 0.01
    assert score.pitch == 1.0 and score.side == 1.0


def test_a_late_sound_is_measured_as_late():
    _, _, events = bouncing(2)
    late = [world.Event(e.time + 0.12, e.kind, e.colour, e.pitch, e.pan) for e in events]
    score = world.compare_events(events, world.listen(world.render_sound(late, 49 / FPS), SAMPLE_RATE))
    assert abs(score.offset - 0.12) <= 0.01
    assert (
        world.compare_events(events, world.listen(world.render_sound(late, 7.0), SAMPLE_RATE), tolerance=0.08).f1 == 0.0
    )


def test_side_and_pitch_mistakes_are_seen():
    left = [world.Event(0.5, "bounce", "red", PITCHES["red"], -0.8)]
    right = [world.Event(0.5, "bounce", "blue", PITCHES["blue"], 0.8)]
    score = world.compare_events(left, world.listen(world.render_sound(right, 1.5), SAMPLE_RATE))
    assert score.f1 == 1.0 and score.pitch == 0.0 and score.side == 0.0


def test_silence_and_noise_hold_no_events():
    assert world.listen(np.zeros((2, SAMPLE_RATE)), SAMPLE_RATE) == []
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 2 * SAMPLE_RATE))
    assert all(heard.colour == "unclear" for heard in world.listen(noise, SAMPLE_RATE))
    assert world.compare_events([], []).f1 == 1.0


def test_wrong_input_is_refused():
    with pytest.raises(UsageError, match="finite"):
        world.listen(np.full((2, 100), np.nan), SAMPLE_RATE)
    with pytest.raises(UsageError, match="length above 0"):
        world.render_sound([], 0.0)
