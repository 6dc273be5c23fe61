"""Fitting a given sound or video to a run: lengths, rates, sizes, and what is told about it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from genkit.errors import UsageError
from genkit.pipelines.kinds import SizeRule
from genkit.pipelines.outputs import fit_sound
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.audio_video.given import Given

RULE = SizeRule(32, 4)


@pytest.mark.parametrize(
    ("seconds", "most", "frames"), [(3.1, None, 25), (1.0, None, 9), (0.1, None, 5), (60.0, 49, 49), (60.0, 48, 45)]
)
def test_a_clip_lasts_about_as_long_as_its_sound(seconds, most, frames):
    sound = Given(sound=np.zeros((round(16000 * seconds), 1), np.float32), rate=16000)
    assert sound.num_frames(Fraction(8), RULE, most) == frames


@pytest.mark.parametrize(("frames", "fps", "rate"), [(25, "8", 16000), (121, "24000/1001", 48000), (9, "8", 44100)])
def test_a_sound_is_as_long_as_its_video_to_the_sample(frames, fps, rate):
    exact = Fraction(frames * rate) / Fraction(fps)
    for length in (10, 10**6):
        sound = np.ones((length, 2), np.float32)
        fitted = fit_sound(sound, rate, frames, Fraction(fps))
        assert abs(len(fitted) - exact) <= Fraction(1, 2)
        assert (fitted[: min(length, len(fitted))] == 1).all() and (fitted[length:] == 0).all()


def test_what_fits_is_left_alone():
    sound = Given(sound=np.random.default_rng(0).random((18000, 2), np.float32), rate=16000)
    fitted = sound.fitted(9, Fraction(8), 64, 64)
    assert fitted.told == () and np.array_equal(fitted.sound, sound.sound)
    video = Given(frames=np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8), fps=Fraction(8))
    fitted = video.fitted(9, Fraction(8), 64, 64)
    assert fitted.told == () and np.array_equal(fitted.frames, video.frames)


def test_every_change_is_told():
    sound = Given(sound=np.ones((5000, 1), np.float32), rate=10000).fitted(9, Fraction(8), 64, 64)
    assert sound.rate == 48000 and sound.sound.shape == (54000, 1)
    assert "from 10000 to 48000 Hz" in sound.told[0] and "silence was added" in sound.told[1]
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    video = Given(frames=frames, fps=Fraction(24)).fitted(17, Fraction(8), 64, 64)
    assert video.frames.shape == (17, 64, 64, 3) and len(video.told) == 3
    # 40 frames at 24 per second are 13 at 8: the middle one of every three, then the last one held.
    assert video.frames[:, 0, 0, 0].tolist() == [*range(1, 38, 3), *[37] * 4]
    cut = Given(frames=frames, fps=Fraction(8)).fitted(9, Fraction(8), 32, 32)
    assert cut.frames[:, 0, 0, 0].tolist() == list(range(9)) and "the first 9 were taken" in cut.told[0]


def test_both_halves_at_once_are_refused():
    with pytest.raises(UsageError, match="exclude each other"):
        GenerateSettings(prompt="", audio="a.wav", video="b.mp4")
    assert GenerateSettings(prompt="", audio="a.wav").to_dict()["audio"] == "a.wav"
