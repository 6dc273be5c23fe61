"""Sound from files of any kind that FFmpeg reads, and other sample rates for it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import ArtifactError, UsageError, explain
from genkit.media.container import opened
from genkit.media.limits import SECONDS
from genkit.reading.files import called

#: Samples per second that AAC, and so .mp4, can have.
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_BLOCK = 4096
#: Seconds without any sample that are silence rather than inexact time stamps.
_GAP = 0.05


def read_sound(path: str | Path, seconds: float = SECONDS, what: str = "") -> tuple[np.ndarray, int]:
    """Decode the first soundtrack of a file (.wav, .mp3, .flac, .mp4, ...).

    Args:
        path: the file.
        seconds: decode no more than this.
        what: it is to the user, for messages: ``"--audio"``.

    Returns:
        float32 samples (S, channels) in -1..1 with one or two channels, and samples per second. More than two channels
        are mixed to two. In a video the first sample is heard with the first frame.

    Raises:
        ArtifactError: missing or unreadable file, or one without sound.
    """
    with opened(path, what) as container:
        sound, rate = decode_sound(container, seconds)
    if sound is None:
        raise ArtifactError(f"{called(path, what)} has no sound in it; give a file with a soundtrack")
    return sound, rate


def sound_seconds(path: str | Path) -> float | None:
    """How long the first soundtrack of a file is said to be, from the time of the first frame of a video on; infinity
    where the file does not say, None without sound. Nothing is decoded.

    Raises:
        ArtifactError: a file that cannot be read.
    """
    with opened(path) as container:
        if not container.streams.audio or container.streams.audio[0].codec_context is None:
            return None
        stream = container.streams.audio[0]
        if stream.duration is None:
            return float("inf")
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base - _begin(container))


def decode_sound(container: Any, seconds: float = SECONDS) -> tuple[np.ndarray | None, int | None]:
    """The first soundtrack of an opened file as float32 (S, channels) with its rate, from the time of the first frame
    of a video on; (None, None) when there is none that can be decoded."""
    import av

    if not container.streams.audio or container.streams.audio[0].codec_context is None:
        return None, None
    stream = container.streams.audio[0]
    rate = int(stream.codec_context.sample_rate)
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    begin = _begin(container)
    # The coder works in blocks; what its last one holds beyond the track's length is padding.
    length = round(stream.duration * stream.time_base * rate) if stream.duration else None
    blocks, offset, filled, most = [], None, 0, int(seconds * rate)
    for frame in container.decode(audio=0):
        place_of = None if frame.pts is None else round((frame.pts * frame.time_base - begin) * rate)
        if offset is None:
            offset = place_of or 0
        made = [out.to_ndarray() for out in resampler.resample(frame)]
        gap = 0 if place_of is None else place_of - offset - filled
        if gap > _GAP * rate:  # nothing was recorded for a while
            made = [np.zeros((1 if layout == "mono" else 2, min(gap, most)), np.float32), *made]
        blocks += made
        filled += sum(block.shape[1] for block in made)
        if filled + offset >= most:
            break
    blocks += [out.to_ndarray() for out in resampler.resample(None)]
    if not blocks:
        return None, None
    sound = np.ascontiguousarray(np.concatenate(blocks, axis=1).T[:length])
    return _shifted(sound, offset, rate)[:most], rate


def _begin(container: Any) -> Fraction:
    """When a file begins to be seen or, without a picture, heard, in seconds on its own clock."""
    pictures = [stream for stream in container.streams.video if stream.start_time is not None]
    if pictures:
        return pictures[0].start_time * pictures[0].time_base
    heard = container.streams.audio[0]
    return (heard.start_time or 0) * heard.time_base


def _shifted(sound: np.ndarray, offset: int, rate: int) -> np.ndarray:
    """Sound that starts ``offset`` samples after the picture, or before it; less than a millisecond is rounding."""
    if abs(offset) * 1000 < rate:
        return sound
    if offset < 0:
        return sound[-offset:]
    return np.pad(sound, ((offset, 0), (0, 0)))


def resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A sound (S, channels) at another sample rate, with as many samples as its duration asks for.

    Raises:
        UsageError: a rate that is not positive, or more than two channels.
    """
    if min(rate, wanted) <= 0 or sound.ndim != 2 or sound.shape[1] not in (1, 2):
        raise UsageError(explain("sound", f"{sound.shape} at {rate} Hz", "(S, 1 or 2 channels) at a rate above 0"))
    if rate == wanted or not len(sound):
        return sound
    import av

    layout = "mono" if sound.shape[1] == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=wanted)
    blocks = []
    for start in range(0, len(sound), _BLOCK):
        piece = np.ascontiguousarray(sound[start : start + _BLOCK].T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, start
        blocks += [out.to_ndarray() for out in resampler.resample(frame)]
    blocks += [out.to_ndarray() for out in resampler.resample(None)]
    count = round(len(sound) * wanted / rate)
    made = np.concatenate(blocks, axis=1).T[:count]
    return np.pad(made, ((0, count - len(made)), (0, 0)))
