"""Video files of other programs: which frame is shown when, and no more frames decoded than are used."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import ArtifactError
from genkit.media.container import opened
from genkit.media.images import resized
from genkit.media.limits import FRAMES, check_decoded
from genkit.media.sound import decode_sound
from genkit.reading.files import called, place

#: Share of a frame's time by which a time stamp may be off in a video of constant rate: files round their times.
_ROUNDING = Fraction(1, 8)
#: Packets are counted before anything is decoded; no clip that a model reads comes near.
_PACKETS = 1_000_000


@dataclass(frozen=True)
class Video:
    """What a video file holds, read without decoding more than its first frame.

    Args:
        path: the file.
        fps: mean frames per second, exact.
        starts: when each frame is shown, in seconds after the first one.
        seconds: how long all are shown.
        height: in pixels as a viewer shows them, turned and with square pixels.
        width: likewise.
        told: what a user should know about how it is read, one line each.
        comment: the text stored in it, or None.
        missing: frames that the file's head promises and that are not in it: it was cut off.
        what: it is to the user, for messages.
    """

    path: Path
    fps: Fraction
    starts: tuple[Fraction, ...]
    seconds: Fraction
    height: int
    width: int
    told: tuple[str, ...] = ()
    comment: str | None = None
    missing: int = 0
    what: str = ""

    @cached_property
    def constant(self) -> bool:
        """Whether every frame is shown equally long."""
        most = _ROUNDING / self.fps
        return all(abs(start - index / self.fps) <= most for index, start in enumerate(self.starts))

    def frame_at(self, time: Fraction) -> int:
        """The number of the frame that is shown at a time in seconds; the last one from the end on."""
        if self.constant:
            return min(int(time * self.fps), len(self.starts) - 1)
        return max(bisect.bisect_right(self.starts, time) - 1, 0)

    def chosen(self, fps: Fraction, most: int) -> list[int]:
        """The frames to take for another rate, ``most`` at most: each is the one shown in the middle of the new one."""
        if self.constant and fps == self.fps:
            return list(range(min(len(self.starts), most)))
        count = min(max(1, round(self.seconds * fps)), most)
        return [self.frame_at((index + Fraction(1, 2)) / fps) for index in range(count)]


def probe_video(path: str | Path, what: str = "") -> Video:
    """Read the time stamps of a video file, and its first frame; ``what`` it is to the user, for messages.

    Raises:
        ArtifactError: the file cannot be decoded or holds no picture.
    """
    with opened(path, what) as container:
        stream = _stream(container, called(path, what))
        comment = container.metadata.get("comment")
        stamps, packets = _stamps(container, stream)
        container.seek(0)
        first = next(container.decode(video=0), None)
        if first is None or not stamps:
            raise ArtifactError(f"{called(path, what)} has no video in it")
        check_decoded(path, 1, first.height, first.width, what=what)
        fps = _rate(stream, stamps)
        starts = _starts(stamps, fps)
        seconds = starts[-1] + (stamps[-1][1] if stamps[-1][1] and stamps[-1][0] is not None else 1 / fps)
        height, width = _shape(first, stream)
        told = ("the video is interlaced; its frames were taken as they are",) if first.interlaced_frame else ()
        missing = max(stream.frames - packets, 0)
    video = Video(Path(path), fps, starts, seconds, height, width, told, comment, missing, what)
    # Where the rate is constant, rounded time stamps say less than the number of frames.
    return replace(video, seconds=len(starts) / fps) if video.constant else video


def read_chosen(
    video: Video, chosen: Sequence[int], size: tuple[int, int] | None = None, whole: bool = False
) -> np.ndarray:
    """Decode some frames of a video up to the last of them.

    Args:
        video: from :func:`probe_video`.
        chosen: numbers of frames, in any order, repeated or not.
        size: (height, width) to scale them to, by Lanczos interpolation; their own when left out.
        whole: refuse a file that ends before the last of them; else its own last frame stands for what is missing.

    Returns:
        uint8 (len(chosen), H, W, 3), turned as the file says and with square pixels.

    Raises:
        ArtifactError: the file cannot be decoded so far, or the frames are more than is decoded.
    """
    height, width = size or (video.height, video.width)
    name = called(video.path, video.what)
    check_decoded(video.path, len(chosen), height, width, what=video.what)
    wanted, last = set(chosen), max(chosen)
    kept: dict[int, np.ndarray] = {}
    with opened(video.path, video.what) as container:
        stream = _stream(container, name)
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept[number] = _pixels(frame, stream, height, width)
            if number >= last:
                break
    if not kept:
        raise ArtifactError(f"cannot read {name} as a video: no frame could be decoded")
    if whole and len(kept) < len(wanted):
        raise ArtifactError(f"cannot read {name} as a video: it ends before frame {min(wanted - set(kept))}")
    found = sorted(kept)
    # A file that is cut promises more frames than it has; the last one that is there stands for them.
    nearest = [number if number in kept else found[max(bisect.bisect(found, number) - 1, 0)] for number in chosen]
    return np.stack([kept[number] for number in nearest])


def read_mp4(
    path: str | Path, what: str = ""
) -> tuple[np.ndarray, Fraction, np.ndarray | None, int | None, str | None]:
    """Decode a whole video file: frames (T, H, W, 3) uint8, frame rate, audio (S, channels) float32 or None, its rate
    or None, comment or None. Of a video of varying rate the frames are those that are shown at its mean rate.

    Raises:
        ArtifactError: the file cannot be decoded, holds no picture, or is larger than is decoded.
    """
    video = probe_video(path, what)
    if len(video.starts) > FRAMES:
        check_decoded(path, len(video.starts), video.height, video.width, what=what)
    frames = read_chosen(video, video.chosen(video.fps, len(video.starts)))
    with opened(path, what) as container:
        sound, sample_rate = decode_sound(container)
    return frames, video.fps, sound, sample_rate, video.comment


def read_video_comment(path: str | Path) -> str | None:
    """The text stored in a video file; decodes nothing."""
    with opened(path) as container:
        _stream(container, place(path))
        return container.metadata.get("comment")


def _stream(container: Any, name: str) -> Any:
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise ArtifactError(f"{name} has no video in it")
    return container.streams.video[0]


def _stamps(container: Any, stream: Any) -> tuple[list[tuple[Fraction | None, Fraction | None]], int]:
    """Time stamp and duration in seconds of every frame that is shown, in order; (None, ...) where a file has none. And
    how many frames there are with those that are not shown."""
    found, packets = [], 0
    for packet in container.demux(stream):
        packets += packet.size > 0 and not packet.is_corrupt
        if packet.size == 0 or packet.is_discard:
            continue
        base = packet.time_base
        found.append(
            (
                None if packet.pts is None else packet.pts * base,
                None if not packet.duration else packet.duration * base,
            )
        )
        if len(found) > _PACKETS:
            raise ArtifactError(f"{place(container.name)} has more than {_PACKETS} frames; shorten it")
    if any(start is None for start, _ in found):
        return [(None, None)] * len(found), packets
    return sorted(found, key=lambda stamp: stamp[0]), packets


def _rate(stream: Any, stamps: list[tuple[Fraction | None, Fraction | None]]) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if rate and 0 < rate <= 1000:
        return Fraction(rate)
    if stamps[0][0] is None or stamps[-1][0] == stamps[0][0]:
        raise ValueError("it has no frame rate")
    return ((len(stamps) - 1) / (stamps[-1][0] - stamps[0][0])).limit_denominator(1001)


def _starts(stamps: list[tuple[Fraction | None, Fraction | None]], fps: Fraction) -> tuple[Fraction, ...]:
    if stamps[0][0] is None:
        return tuple(index / fps for index in range(len(stamps)))
    return tuple(start - stamps[0][0] for start, _ in stamps)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """The upper left of a frame's display matrix: (x, y) goes to (a x + c y, b x + d y)."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("<5i" if struct.pack("=i", 1)[0] else ">5i", bytes(data)[:20])
            return a, b, c, d
    return 1, 0, 0, 1


def _sides(frame: Any, stream: Any) -> tuple[int, int]:
    """Height and width with square pixels, before turning."""
    aspect = stream.sample_aspect_ratio
    usable = aspect and aspect != 1 and Fraction(1, 4) <= aspect <= 4
    return frame.height, max(1, round(frame.width * aspect)) if usable else frame.width


def _shape(frame: Any, stream: Any) -> tuple[int, int]:
    height, width = _sides(frame, stream)
    a, b, _, _ = _matrix(frame)
    return (height, width) if abs(a) >= abs(b) else (width, height)


def _pixels(frame: Any, stream: Any, height: int, width: int) -> np.ndarray:
    """A frame as uint8 (height, width, 3), turned and mirrored to the nearest quarter as its file says."""
    pixels = frame.to_ndarray(format="rgb24")
    a, b, c, d = _matrix(frame)
    if abs(a) < abs(b):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    pixels = np.ascontiguousarray(pixels)
    return pixels if pixels.shape[:2] == (height, width) else resized(pixels[None], height, width)[0]
