"""Measuring sound with video: right on the world's own clips, wrong where the two do not belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genkit.evaluation.sound_sheet import sound_sheet, wave_strip
from genkit.evaluation.toy_av import (
    SoundRequest,
    draw_sound_prompts,
    judge_sound_clips,
    measure_sync,
    own_bias,
    seen_and_heard,
    true_clips,
)
from genkit.world.listen import listen
from genkit.world.sound import SAMPLE_RATE

REQUEST = SoundRequest()


@pytest.fixture(scope="module")
def truth():
    """Clips of the world, and what is seen to happen in each."""
    scenes = [scene for scene, _ in draw_sound_prompts("train", 16, 3)]
    clips = [clip for clip, _ in true_clips(scenes, REQUEST, 3)]
    return clips, [seen_and_heard(clip, REQUEST.fps)[0] for clip in clips]


def _sync(seen, sounds):
    return measure_sync([(sight, listen(sound.T, SAMPLE_RATE)) for sight, sound in zip(seen, sounds, strict=True)])


def test_the_worlds_own_clips_are_right():
    scenes = [scene for scene, _ in draw_sound_prompts("train", 12, 3)]
    clips = [clip for clip, _ in true_clips(scenes, REQUEST, 3)]
    accuracy, sync = judge_sound_clips(scenes, clips, REQUEST, own_bias(REQUEST, 6))
    assert accuracy.right["all"] >= 0.9
    assert sync.f1 >= 0.97 and abs(sync.offset) <= 0.01
    assert sync.pitch == 1.0 and sync.side == 1.0 and sync.silence == 1.0
    assert sync.seen >= 10


def test_a_shifted_sound_is_late(truth):
    clips, seen = truth
    shift = round(0.1 * SAMPLE_RATE)
    late = _sync(seen, [np.pad(clip.sound, ((shift, 0), (0, 0)))[:-shift] for clip in clips])
    assert late.offset == pytest.approx(_sync(seen, [clip.sound for clip in clips]).offset + 0.1, abs=0.011)
    assert measure_sync([(seen[0], seen[0])], bias=0.02).offset == pytest.approx(-0.02)


def test_the_sound_of_another_clip_is_wrong(truth):
    clips, seen = truth
    sync = _sync(seen[1:] + seen[:1], [clip.sound for clip in clips])
    assert sync.f1 < 0.6
    assert sync.pitch < 0.7 and sync.silence < 1.0


def test_exchanged_sides_and_missing_sounds_are_noticed(truth):
    clips, seen = truth
    mirrored = _sync(seen, [clip.sound[:, ::-1] for clip in clips])
    assert mirrored.f1 >= 0.97 and mirrored.pitch == 1.0 and mirrored.side < 0.7
    silent = _sync(seen, [0 * clip.sound for clip in clips])
    assert silent.f1 == 0.0 and math.isnan(silent.offset) and silent.silence == 1.0


def test_the_sheet_marks_events(truth):
    strip = wave_strip(np.zeros((1600, 2), np.float32), 100, 40, seen=[0.25], heard=[0.75])
    assert strip.shape == (40, 100, 3)
    assert (strip[:20, 25] == (30, 150, 60)).all() and (strip[20:, 75] == (210, 60, 40)).all()
    loud = wave_strip(np.ones((1600, 1), np.float32), 100, 40)
    assert (loud != strip).mean() > 0.5
    sheet = sound_sheet(truth[0][:3], ["one", "two", "three"], REQUEST.fps)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[0] > 2 * 128
