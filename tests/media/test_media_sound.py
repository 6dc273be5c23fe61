"""Sound from files and at other rates, and its exact length in .mp4."""

from __future__ import annotations

import wave

import numpy as np
import pytest

from genkit import media
from genkit.errors import ArtifactError, UsageError


def tone(samples: int, rate: int, pitch: float = 400.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)).astype(np.float32)


def write_wav(path, sound: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


@pytest.mark.parametrize(("samples", "rate"), [(18000, 16000), (49612, 44100), (54001, 48000), (27001, 24000)])
def test_the_track_lasts_to_the_sample(tmp_path, samples, rate):
    sound = np.stack([tone(samples, rate), 0 * tone(samples, rate)], 1)
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    media.write_media(tmp_path / "a.mp4", frames, "24000/1001", audio=sound, sample_rate=rate)
    back = media.read_media(tmp_path / "a.mp4")
    assert back.audio.shape == (samples, 2) and back.sample_rate == rate
    assert str(back.fps) == "24000/1001" and len(back.frames) == 9
    assert np.abs(back.audio[2000:-2000] - sound[2000:-2000]).max() < 0.05
    alone, heard_rate = media.read_sound(tmp_path / "a.mp4")
    assert heard_rate == rate and np.array_equal(alone, back.audio)


def test_a_wav_comes_as_it_is(tmp_path):
    sound = np.stack([tone(4410, 44100), tone(4410, 44100, 900)], 1)
    write_wav(tmp_path / "x.wav", sound, 44100)
    heard, rate = media.read_sound(tmp_path / "x.wav")
    assert rate == 44100 and heard.dtype == np.float32
    assert np.abs(heard - sound).max() < 1e-4


def test_another_rate_keeps_pitch_and_length():
    made = media.resample(tone(44100, 44100)[:, None], 44100, 16000)
    assert made.shape == (16000, 1)
    assert np.abs(made[200:-200, 0] - tone(16000, 16000)[200:-200]).max() < 1e-3
    same = tone(100, 8000)[:, None]
    assert media.resample(same, 8000, 8000) is same
    with pytest.raises(UsageError, match="rate above 0"):
        media.resample(same, 8000, 0)


def test_bad_files_are_told(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF no sound at all")
    media.write_media(tmp_path / "silent.mp4", np.zeros((3, 32, 32, 3), np.uint8), 8)
    for name, text in (("none.wav", "does not exist"), ("bad.wav", "cannot read"), ("silent.mp4", "no sound")):
        with pytest.raises(ArtifactError, match=text):
            media.read_sound(tmp_path / name)
