"""MP4: H.264 video and AAC sound, exact frame rates, settings in the comment field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain
from genkit.reading import rate as parse_rate

BT709 = 1
LIMITED_RANGE = 1
# x264 is deterministic for a fixed number of threads, but not across numbers: a fixed one makes the bytes repeatable
# anywhere.
ENCODER_THREADS = 4
CRF = 10
AUDIO_BLOCK = 1024


def exact_fps(fps: float | int | str | Fraction) -> Fraction:
    """A frame rate as an exact fraction; 23.976, 29.97 and 59.94 become the broadcast rates 24000/1001, 30000/1001,
    60000/1001.

    Raises:
        UsageError: not a positive number.
    """
    exact = Fraction(fps).limit_denominator(1001) if isinstance(fps, float) and math.isfinite(fps) else fps
    rate = parse_rate(exact)
    for nominal in (24, 30, 48, 60, 120):
        broadcast = Fraction(nominal * 1000, 1001)
        if rate != nominal and abs(rate - broadcast) < Fraction(1, 1000):
            return broadcast
    return rate


def check_frames(frames: np.ndarray) -> np.ndarray:
    """Contiguous uint8 frames (T, H, W, 3) or the reason why the array is none.

    Raises:
        UsageError: wrong shape, type or an empty axis.
    """
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
        or 0 in frames.shape
    ):
        shown = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise UsageError(explain("frames", shown, "a uint8 array (frames, height, width, 3) without an empty axis"))
    return np.ascontiguousarray(frames)


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float | str | Fraction,
    *,
    audio: np.ndarray | None = None,
    sample_rate: int | None = None,
    comment: str | None = None,
    crf: int = CRF,
) -> None:
    """Encode frames (T, H, W, 3) uint8 to H.264 in yuv420p with BT.709 colours, playable while it downloads.

    Args:
        path: where to write. Not atomic by itself: :func:`genkit.media.write_media` is.
        frames: uint8 (T, H, W, 3); height and width even, which 4:2:0 colour needs.
        fps: frames per second, kept exactly.
        audio: float samples (S,) or (S, channels) in [-1, 1], one or two channels; becomes AAC.
        sample_rate: samples per second of ``audio``; required with it.
        comment: text kept in the file's comment field.
        crf: quality, 0 (lossless) to 51. The default 10 keeps flat colours and edges clean at about 1 bit per pixel
        or less.

    Raises:
        UsageError: odd sizes, wrong arrays, audio without a sample rate.
        UnsupportedError: the installed FFmpeg libraries have no H.264 (or AAC) encoder.
    """
    import av

    frames = check_frames(frames)
    rate = exact_fps(fps)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UsageError(
            explain(
                "video size", f"{width}x{height}", "even width and height for .mp4", "write .gif, .webp or .png instead"
            )
        )
    sound = _check_audio(audio, sample_rate)
    try:
        options = _options(None if sound is None else sample_rate)
        with av.open(str(path), "w", format="mp4", options=options) as container:
            if comment is not None:
                container.metadata["comment"] = comment
            picture = video_stream(container, rate, width, height, crf)
            voice = _audio_stream(container, sample_rate, sound.shape[1]) if sound is not None else None
            for packet in encoded(picture, frames, rate):
                container.mux(packet)
            container.mux(picture.encode(None))
            if voice is not None:
                _encode_audio(container, voice, sound, sample_rate)
    except av.error.EncoderNotFoundError as error:
        raise UnsupportedError(
            f"this FFmpeg build has no encoder for .mp4 ({error}); install PyAV from its wheels, or write .webp"
        ) from error


def _options(sample_rate: int | None) -> dict[str, str]:
    """Options of the container; with sound its clock ticks once per sample, since it rounds all lengths to its own."""
    clock = {} if sample_rate is None else {"movie_timescale": str(sample_rate)}
    return {"movflags": "+faststart", **clock}


def _check_audio(audio: np.ndarray | None, sample_rate: int | None) -> np.ndarray | None:
    if audio is None:
        return None
    if not sample_rate or sample_rate <= 0:
        raise UsageError(explain("sample_rate", sample_rate, "samples per second, for instance 16000, with audio="))
    sound = np.asarray(audio, dtype=np.float32)
    sound = sound[:, None] if sound.ndim == 1 else sound
    if sound.ndim != 2 or sound.shape[1] not in (1, 2) or not len(sound):
        raise UsageError(explain("audio", np.shape(audio), "samples (S,) or (S, 1 or 2 channels)"))
    if not np.isfinite(sound).all():
        raise ArtifactError("the sound holds NaN or infinite samples; it was not written")
    return np.clip(sound, -1.0, 1.0)


def video_stream(container: Any, rate: Fraction, width: int, height: int, crf: int, **options: str) -> Any:
    """A stream of H.264 in a container; ``options`` are the encoder's."""
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium", "profile": "high", **options}
    context = stream.codec_context
    context.time_base = 1 / rate
    context.thread_count = ENCODER_THREADS
    context.gop_size = max(1, round(2 * rate))
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    return stream


def encoded(stream: Any, frames: np.ndarray, rate: Fraction, first: int = 0) -> Iterator[Any]:
    """Packets of frames (T, H, W, 3), of which ``first`` were before; the encoder may keep some back."""
    import av
    from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    for index, pixels in enumerate(frames):
        frame = reformatter.reformat(
            av.VideoFrame.from_ndarray(pixels, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            interpolation=Interpolation.BICUBIC,
        )
        frame.pts, frame.time_base, frame.duration = first + index, 1 / rate, 1
        yield stream.encode(frame)


def _audio_stream(container: Any, sample_rate: int, channels: int) -> Any:
    stream = container.add_stream("aac", rate=sample_rate, layout="mono" if channels == 1 else "stereo")
    stream.codec_context.bit_rate = 96_000 * channels
    return stream


def _encode_audio(container: Any, stream: Any, sound: np.ndarray, sample_rate: int) -> None:
    import av

    layout = "mono" if sound.shape[1] == 1 else "stereo"
    for start in range(0, len(sound), AUDIO_BLOCK):
        block = np.ascontiguousarray(sound[start : start + AUDIO_BLOCK].T)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
