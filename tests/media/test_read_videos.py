"""Videos of other programs are read as a player shows them: turned, by time, with their sound in place, and only as
far as they are used."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from genkit import media
from genkit.errors import ArtifactError
from genkit.media import limits, read_video

SHADES = [20 + 20 * n for n in range(10)]


def write(path, pts, *, base=Fraction(1, 100), height=64, width=96, left=None, rotation=None, sar=None, sound=None):
    """Grey frames, frame n of shade 20 + 20 n at time pts[n] * base; the left half of another shade if given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(len(pts) - 1, 1) / ((pts[-1] - pts[0]) * base))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "1", "video_track_timescale": "1000"}
        stream.codec_context.time_base = base
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        if rotation is not None:
            stream.set_display_rotation(rotation)
        voice = None if sound is None else container.add_stream("aac", rate=16000, layout="mono")
        for number, stamp in enumerate(pts):
            pixels = np.full((height, width, 3), SHADES[number % 10], np.uint8)
            if left is not None:
                pixels[:, : width // 2] = left
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            start, samples = sound
            for begin in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start + begin, Fraction(1, 16000)
                container.mux(voice.encode(frame))
            container.mux(voice.encode(None))


def shades(frames):
    return [min(range(10), key=lambda n: abs(SHADES[n] - frame.mean())) for frame in frames]


@pytest.mark.parametrize("rotation, bright", [(None, "left"), (90, "bottom"), (-90, "top"), (180, "right")])
def test_a_rotation_mark_turns_the_frames(tmp_path, rotation, bright):
    write(tmp_path / "a.mp4", [0, 10, 20], left=250, rotation=rotation)
    frame = media.read_media(tmp_path / "a.mp4").frames[0]
    assert frame.shape == ((96, 64, 3) if rotation in (90, -90) else (64, 96, 3))
    height, width = frame.shape[:2]
    halves = {
        "left": frame[:, : width // 2], "right": frame[:, width // 2 :],
        "top": frame[: height // 2], "bottom": frame[height // 2 :],
    }  # fmt: skip
    assert max(halves, key=lambda side: halves[side].mean()) == bright
    video = media.probe_video(tmp_path / "a.mp4")
    assert (video.height, video.width) == frame.shape[:2]


def test_a_varying_rate_is_followed_by_time(tmp_path):
    # Shown for 0.1, 0.1, 0.6, 0.1, ... seconds.
    write(tmp_path / "a.mp4", [0, 10, 20, 80, 90])
    video = media.probe_video(tmp_path / "a.mp4")
    assert not video.constant and [float(start) for start in video.starts] == pytest.approx([0, 0.1, 0.2, 0.8, 0.9])
    chosen = video.chosen(Fraction(10), 100)
    assert chosen[:10] == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4]
    assert shades(media.read_chosen(video, chosen[:10])) == chosen[:10]


def test_a_constant_rate_is_read_frame_by_frame(tmp_path):
    write(tmp_path / "a.mp4", [0, 10, 20, 30, 40, 50])
    video = media.probe_video(tmp_path / "a.mp4")
    assert video.constant and video.fps == 10 and video.seconds == Fraction(6, 10)
    assert video.chosen(Fraction(10), 4) == [0, 1, 2, 3] and video.chosen(Fraction(5), 9) == [1, 3, 5]
    assert shades(media.read_media(tmp_path / "a.mp4").frames) == list(range(6))


def test_only_what_is_used_is_decoded(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", [10 * n for n in range(200)], height=32, width=32)
    turned = []
    pixels = read_video._pixels
    monkeypatch.setattr(read_video, "_pixels", lambda *given: turned.append(1) or pixels(*given))
    video = media.probe_video(tmp_path / "a.mp4")
    assert len(video.starts) == 200 and turned == []
    frames = media.read_chosen(video, [0, 2, 2, 4], (16, 24))
    assert frames.shape == (4, 16, 24, 3) and len(turned) == 3
    assert shades(frames) == [0, 2, 2, 4]
    monkeypatch.setattr(limits, "BYTES", 100 * 32 * 32 * 3)
    with pytest.raises(ArtifactError, match="200 frames of 32x32"):
        media.read_media(tmp_path / "a.mp4")


def test_settings_are_read_without_a_frame(tmp_path, monkeypatch):
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    media.write_media(tmp_path / "a.mp4", frames, 8, settings={"settings": {"steps": 3}})
    monkeypatch.setattr(read_video, "probe_video", None)
    assert media.read_settings(tmp_path / "a.mp4") == {"settings": {"steps": 3}}


def test_pixels_that_are_not_square_are_widened(tmp_path):
    write(tmp_path / "a.mp4", [0, 10, 20], sar=Fraction(4, 3))
    assert media.read_media(tmp_path / "a.mp4").frames.shape == (3, 64, 128, 3)


@pytest.mark.parametrize("start", [0, 8000])
def test_sound_that_starts_late_is_heard_late(tmp_path, start):
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(16000) / 16000).astype(np.float32)
    write(tmp_path / "a.mp4", [10 * n for n in range(20)], sound=(start, tone))
    for sound, rate in (media.read_sound(tmp_path / "a.mp4"), media.read_mp4(tmp_path / "a.mp4")[2:4]):
        heard = np.abs(sound[:, 0]) > 0.2
        assert rate == 16000
        assert abs(int(np.argmax(heard)) - start) < 200
        assert abs(int(len(heard) - np.argmax(heard[::-1])) - (start + 16000)) < 1200
    assert len(media.read_sound(tmp_path / "a.mp4", seconds=0.25)[0]) == 4000


def test_a_playlist_is_no_video(tmp_path):
    media.write_media(tmp_path / "secret.mp4", np.zeros((3, 32, 32, 3), np.uint8), 8)
    (tmp_path / "a.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(ArtifactError, match="cannot read"):
            media.read_media(tmp_path / name)
