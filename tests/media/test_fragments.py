"""Fragmented MP4: every frame that was written can be watched at once, through a pipe, and after a torn-off end."""

from __future__ import annotations

import io
import json
import os
import threading
from contextlib import suppress

import av
import numpy as np
import pytest

from genkit.errors import ArtifactError, UsageError
from genkit.media import FragmentedVideo, ReaderGone, read_mp4, read_settings


def clip(count, size=(32, 48), seed=0):
    """Flat colours, which survive compression; every frame its own."""
    levels = np.random.default_rng(seed).integers(40, 220, (count, 1, 1, 3))
    return np.broadcast_to(levels, (count, *size, 3)).astype(np.uint8)


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_are_there_as_soon_as_they_are_written():
    sink, frames = io.BytesIO(), clip(12)
    with FragmentedVideo(sink, 8) as video:
        for count in (5, 6, 12):
            video.write(frames[video.frames : count])
            seen = decoded(sink.getvalue())
            assert len(seen) == count - 1 and video.frames == count  # the last one's length is told by the next
            assert np.abs(seen.astype(int) - frames[: count - 1]).max() <= 6
    whole = decoded(sink.getvalue())
    assert len(whole) == 12 and np.array_equal(whole[:11], seen) and video.bytes == len(sink.getvalue())


@pytest.mark.parametrize("fps", ["8", "24000/1001", "23.976"])
def test_a_file_has_its_rate_and_settings(tmp_path, fps):
    path, record = tmp_path / "a.mp4", {"settings": {"prompt": "ä"}}
    with path.open("wb") as sink, FragmentedVideo(sink, fps, comment=json.dumps(record)) as video:
        video.write(clip(9))
    frames, rate, audio, *_ = read_mp4(path)
    assert len(frames) == 9 and float(rate) == pytest.approx(8 if fps == "8" else 24000 / 1001) and audio is None
    assert read_settings(path) == record


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_what_is_torn_off_plays_up_to_there(share):
    sink = io.BytesIO()
    with FragmentedVideo(sink, 8) as video:
        video.write(clip(20))
    data = sink.getvalue()
    found = decoded(data[: int(len(data) * share)])
    assert 20 * share - 8 < len(found) < 20
    assert np.array_equal(found, decoded(data)[: len(found)])


def test_a_reader_that_ends_is_told():
    reader, writer = os.pipe()
    got = []

    def read():
        with os.fdopen(reader, "rb") as pipe:
            got.append(pipe.read(4000))

    thread = threading.Thread(target=read)
    thread.start()
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    sink = os.fdopen(writer, "wb")
    video = FragmentedVideo(sink, 8, name="standard output")
    with pytest.raises(ReaderGone, match="reads standard output has ended; it was given up to frame"):
        for _ in range(50):
            video.write(noise)
    thread.join()
    with suppress(BrokenPipeError):
        sink.close()
    assert len(got[0]) == 4000


def test_what_cannot_be_written(tmp_path):
    video = FragmentedVideo(io.BytesIO(), 8)
    with pytest.raises(UsageError, match="even width and height"):
        video.write(clip(2, (31, 48)))
    video.write(clip(2))
    with pytest.raises(UsageError, match="size of those before"):
        video.write(clip(2, (48, 48)))
    with pytest.raises(UsageError, match="uint8"):
        video.write(clip(2).astype(float))
    video.close()
    video.close()

    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left on device"):
        FragmentedVideo(Full(), 8, name="a.mp4").write(clip(2))


def test_nothing_written_is_nothing(tmp_path):
    sink = io.BytesIO()
    with FragmentedVideo(sink, 8):
        pass
    assert sink.getvalue() == b""
