"""Every format round trip: pixels, rates, sound, settings, and nothing left behind when writing fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from genkit import media
from genkit.errors import ArtifactError, UsageError
from genkit.media import images
from genkit.media.atomic import Files

ROOT = Path(__file__).resolve().parents[2]
RECORD = {"settings": {"prompt": "ein Kreis é 圆", "steps": 3, "output": "a, b; c"}, "made_with": {"torch": "2"}}


def disc(frames=9, size=64):
    """A red disc moving over blue: flat colours with one edge."""
    y, x = np.mgrid[:size, :size]
    clip = np.empty((frames, size, size, 3), np.uint8)
    clip[:] = (30, 60, 200)
    for index in range(frames):
        clip[index][(x - 20 - 2 * index) ** 2 + (y - 30) ** 2 < 12**2] = (220, 30, 30)
    return clip


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "frames", "shot-%03d.png"])
def test_frames_and_settings_come_back(tmp_path, name):
    clip = disc()
    written = media.write_media(tmp_path / name, clip, 8, settings=RECORD, notes={"seconds": 1.5})
    back = media.read_media(tmp_path / name)
    assert back.frames.shape == clip.shape
    assert back.settings == RECORD
    if name != "clip.mp4":
        assert np.abs(back.frames.astype(int) - clip).max() <= 2
    assert all(path.exists() for path in written)
    beside = json.loads((tmp_path / (name.replace("%03d", "frames") + ".json")).read_text())
    assert beside == {**RECORD, "notes": {"seconds": 1.5}}


def test_mp4_keeps_colours_and_edges(tmp_path):
    clip = disc(frames=5, size=128)
    disc_pixels = clip[..., 0] == 220
    flat = np.ones_like(disc_pixels)
    for dy in range(-4, 5):
        for dx in range(-4, 5):  # 4:2:0 colour softens the edge itself
            flat &= np.roll(disc_pixels, (dy, dx), (1, 2)) == disc_pixels
    media.write_media(tmp_path / "clip.mp4", clip, 8)
    error = np.abs(media.read_media(tmp_path / "clip.mp4").frames.astype(int) - clip).max(axis=-1)
    assert error[flat].max() <= 6
    assert error[flat].mean() <= 2
    assert error[~flat].mean() <= 40


def test_enlarging_keeps_the_colours_of_single_pixels(tmp_path):
    clip = disc(frames=3, size=64)
    errors = {}
    for factor in (1, 3):
        big = media.enlarge(clip, factor)
        assert big.shape == (3, 64 * factor, 64 * factor, 3)
        media.write_media(tmp_path / f"{factor}.mp4", big, 8)
        back = media.read_media(tmp_path / f"{factor}.mp4").frames[:, factor // 2 :: factor, factor // 2 :: factor]
        errors[factor] = np.abs(back.astype(int) - clip).mean()
    assert media.enlarge(clip, 1) is clip
    assert errors[3] < 0.7 * errors[1]


@pytest.mark.parametrize(
    "fps, exact",
    [(8, Fraction(8)), ("23.976", Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)),
     ("30000/1001", Fraction(30000, 1001)), (12.5, Fraction(25, 2))],
)  # fmt: skip
def test_frame_rates_are_exact_without_drift(tmp_path, fps, exact):
    path = tmp_path / "clip.mp4"
    media.write_media(path, disc(frames=60, size=32), fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(video=0)]
        assert stream.average_rate == exact
    assert times == [Fraction(index) / exact for index in range(60)]


def test_mp4_plays_in_a_browser_and_while_downloading(tmp_path):
    path = tmp_path / "clip.mp4"
    media.write_media(path, disc(), 8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")


def test_equal_requests_give_equal_bytes(tmp_path):
    for name in ("a.mp4", "a.gif", "a.webp", "a-%d.png"):
        media.write_media(tmp_path / "one" / name, disc(), 8, settings=RECORD)
        media.write_media(tmp_path / "two" / name, disc(), 8, settings=RECORD)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 3 + 9 + 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_sound_comes_back_in_place(tmp_path):
    rate = 16000
    sound = np.zeros(rate, np.float32)
    sound[4000:5600] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1600) / rate)
    media.write_media(tmp_path / "clip.mp4", disc(frames=8), 8, audio=sound, sample_rate=rate)
    back = media.read_media(tmp_path / "clip.mp4")
    heard = np.abs(back.audio[:, 0]) > 0.2
    assert back.sample_rate == rate
    assert abs(int(np.argmax(heard)) - 4000) < 160
    assert abs(int(len(heard) - np.argmax(heard[::-1])) - 5600) < 160


def test_stereo_keeps_its_sides(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(8000) / 16000)
    media.write_media(tmp_path / "a.mp4", disc(4), 8, audio=np.stack([tone, 0 * tone], 1), sample_rate=16000)
    sides = np.abs(media.read_media(tmp_path / "a.mp4").audio[2000:6000]).mean(axis=0)
    assert sides.shape == (2,)
    assert sides[0] > 20 * sides[1]


def test_gif_and_webp_times_do_not_drift():
    for unit in (1, 10):
        times = images.durations(100, Fraction(24000, 1001), unit)
        ends = np.cumsum(times)
        exact = np.array([float(1000 * Fraction(n + 1) / Fraction(24000, 1001)) for n in range(100)])
        assert np.abs(ends - exact).max() <= unit / 2 + 1e-9


def test_a_single_image_is_a_png(tmp_path):
    media.write_media(tmp_path / "one.png", disc(1), settings=RECORD)
    back = media.read_media(tmp_path / "one.png")
    assert np.array_equal(back.frames, disc(1))
    with pytest.raises(UsageError, match=r"one image, but there are 9 frames"):
        media.write_media(tmp_path / "many.png", disc(9))


@pytest.mark.parametrize(
    "frames, text",
    [
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 3), np.uint8), "uint8 array"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty axis"),
    ],
)
def test_arrays_that_are_no_frames_are_refused(tmp_path, frames, text):
    with pytest.raises(UsageError, match=text):
        media.write_media(tmp_path / "a.gif", frames, 8)
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_leave_nothing(tmp_path):
    for name, extra, text in (
        ("a.avi", {}, "allowed"),
        ("a-%d-%d.png", {}, "one %d"),
        ("a-%d", {}, "one %d"),
        ("a.mp4", {"fps": None}, "fps"),
        ("a.mp4", {"fps": 0}, "above 0"),
        ("a.gif", {"audio": np.zeros(10), "sample_rate": 8000}, "only .mp4"),
        ("a.mp4", {"audio": np.zeros(10)}, "sample_rate"),
    ):
        with pytest.raises(UsageError, match=text):
            media.write_media(tmp_path / name, disc(3), **{"fps": 8, **extra})
    with pytest.raises(UsageError, match="even width"):
        media.write_media(tmp_path / "odd.mp4", np.zeros((2, 15, 16, 3), np.uint8), 8)
    with pytest.raises(ArtifactError, match="NaN"):
        media.write_media(tmp_path / "nan.mp4", disc(3), 8, audio=np.full(100, np.nan), sample_rate=8000)
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_are_kept_without_force(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        media.write_media(path, disc(3), 8)
    assert path.read_bytes() == b"precious"
    media.write_media(path, disc(3), 8, force=True)
    assert media.read_media(path).frames.shape[0] == 3


def test_force_replaces_own_frames_but_never_foreign_files(tmp_path):
    media.write_media(tmp_path / "frames", disc(9), settings=RECORD)
    media.write_media(tmp_path / "frames", disc(4), settings=RECORD, force=True)
    assert len(media.read_media(tmp_path / "frames").frames) == 4
    media.write_media(tmp_path / "s-%d.png", disc(9))
    media.write_media(tmp_path / "s-%d.png", disc(4), force=True)
    assert len(media.read_media(tmp_path / "s-%d.png").frames) == 4
    (tmp_path / "frames" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="thesis.txt"):
        media.write_media(tmp_path / "frames", disc(4), force=True)
    assert (tmp_path / "frames" / "thesis.txt").exists()


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Files() as files:
        files.new(tmp_path / "a.mp4").write_bytes(b"half")
        files.new(tmp_path / "folder").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys, numpy as np
from genkit import media
from genkit.errors import ArtifactError
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
for name in ("a.mp4", "a.gif", "a.webp", "frames", "a-%d.png"):
    try:
        media.write_media(sys.argv[1] + "/" + name, frames, 8)
    except ArtifactError as error:
        assert "no partial file was left" in str(error), error
        print("refused", name)
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    """The kernel's limit on file sizes stands for a full disk: writes fail half way with an OSError in both cases."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [
        f"refused {name}" for name in ("a.mp4", "a.gif", "a.webp", "frames", "a-%d.png")
    ]
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 600


def test_unwritable_places_are_told_before_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write into"):
        media.check_output(tmp_path / "file" / "clip.mp4")
    with pytest.raises(ArtifactError, match="cannot write into"):
        media.check_output("/proc/clip.mp4")
    with pytest.raises(UsageError, match="is a folder"):
        (tmp_path / "d.mp4").mkdir()
        media.check_output(tmp_path / "d.mp4", force=True)


def test_reading_what_is_no_media(tmp_path):
    for name in ("a.mp4", "a.png", "a.gif", "a.webp"):
        (tmp_path / name).write_bytes(b"not a media file at all")
        with pytest.raises(ArtifactError, match="cannot read"):
            media.read_media(tmp_path / name)
    for name in ("none.mp4", "none-%d.png", "nofolder"):
        with pytest.raises(ArtifactError):
            media.read_media(tmp_path / name)


def test_settings_only_from_files_that_carry_them(tmp_path):
    media.write_media(tmp_path / "a.mp4", disc(3), 8, settings=RECORD, notes={"seconds": 2})
    media.write_media(tmp_path / "b.mp4", disc(3), 8)
    assert media.read_settings(tmp_path / "a.mp4") == RECORD
    assert media.read_settings(tmp_path / "a.mp4.json") == RECORD
    with pytest.raises(ArtifactError, match="carries no genkit settings"):
        media.read_settings(tmp_path / "b.mp4")
    for name in ("report.html", "shots.yaml", "lora.safetensors", "%d-%d.png"):
        (tmp_path / name).write_bytes(b"another kind of file")
        with pytest.raises(ArtifactError, match=f"{name} carries no genkit settings; --from needs"):
            media.read_settings(tmp_path / name)


def test_numbered_outputs():
    assert str(media.numbered("out/clip.mp4", 3, 12)) == "out/clip-0003.mp4"
    assert str(media.numbered("clip.mp4", 0, 1)) == "clip.mp4"
    assert media.format_of(media.numbered("s-%04d.png", 2, 5)) == "pattern"
    assert str(media.numbered("out/s-%03d.mp4", 2, 5)) == "out/s-002.mp4"
    assert str(media.numbered("s-%d.mp4", 0, 1)) == "s-0.mp4"
    assert str(media.numbered("s-%02d.png", 3, 5, still=True)) == "s-03.png"
    assert str(media.numbered("50%-%02d.gif", 3, 5)) == "50%-03.gif"


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.png.json"])
def test_devices_and_pipes_are_never_replaced(tmp_path, name, kind):
    special, target = tmp_path / name, tmp_path / "pipe"
    os.mkfifo(special if kind == "pipe" else target)
    if kind != "pipe":
        special.symlink_to("/dev/null" if kind == "link to a device" else target)
    with pytest.raises(UsageError, match="device or a pipe"):
        media.check_output(tmp_path / name.removesuffix(".json"), force=True)
    assert special.is_symlink() or special.is_fifo()
