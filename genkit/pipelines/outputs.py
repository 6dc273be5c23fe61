"""What pipelines return, as frames and sound that can be written."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted
from genkit.media import format_of
from genkit.pipelines.attention import report_of
from genkit.pipelines.kinds import IMAGE, Kind
from genkit.pipelines.task import Made

if TYPE_CHECKING:
    from genkit.pipelines.session import Run


def check_format(output: str, kind: Kind, num_frames: int | None) -> None:
    """Refuse a file type that cannot hold what the model makes."""
    form = format_of(output)
    if form == "png" and kind is not IMAGE and (num_frames or 2) > 1:
        raise UsageError(
            f"--output {output}: a .png holds one image, not {counted(num_frames, 'frame')}; use a folder, "
            "shot-%04d.png, or .mp4"
        )
    if form != "mp4" and "audio" in kind.fields:
        raise UsageError(f"--output {output}: this model makes sound too, which only .mp4 holds")
    if form in ("mp4", "gif", "webp") and kind is IMAGE:
        raise UsageError(f"--output {output}: this model makes single pictures; use .png, or a folder")


def collect(run: Run, output: Any, handle: Any) -> Made:
    """Frames, sound and report of a pipeline's output; the sound as long as its video."""
    kind = run.request.model.kind
    frames = to_frames(output, kind)
    audio, rate = to_sound(output, run.pipeline, kind)
    sound = None if audio is None else fit_sound(audio, rate, len(frames), run.fps)
    return Made(frames, sound, rate, report_of(handle))


def to_frames(output: Any, kind: Kind) -> np.ndarray:
    """The first video or image of a pipeline's output as uint8 (T, H, W, 3).

    Raises:
        ArtifactError: values that are NaN or infinite, which would be written as black pixels.
        UnsupportedError: the output has a form that is not known.
    """
    raw = getattr(output, kind.fields[0], None)
    raw = getattr(output, kind.also, None) if raw is None else raw
    if raw is None:
        raise UnsupportedError(f"the pipeline returned no {kind.fields[0]}")
    single = kind is not IMAGE and np.ndim(raw[0]) == 3  # a video, not a list of them
    first = raw if single else raw[0]
    values = np.stack([np.asarray(image) for image in first]) if isinstance(first, list) else np.asarray(first)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3, 4):
        raise UnsupportedError(
            f"the pipeline returned {kind.name} of shape {values.shape}, expected (frames, height, width, colours)"
        )
    if values.dtype != np.uint8:
        if not np.isfinite(values).all():
            share = 1 - np.isfinite(values).mean()
            raise ArtifactError(
                f"the model returned NaN or infinite pixels ({share:.0%}); nothing was written; "
                "try --dtype float32 or other weights"
            )
        values = np.clip(np.rint(values * 255.0), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(values[..., :3] if values.shape[-1] > 1 else np.repeat(values, 3, axis=-1))


def to_sound(output: Any, pipeline: Any, kind: Kind) -> tuple[np.ndarray | None, int | None]:
    """The first soundtrack of a pipeline's output as float32 (S, channels) and its sample rate; (None, None) when
    there is none."""
    raw = getattr(output, "audio", None) if "audio" in kind.fields else None
    return (None, None) if raw is None else one_sound(raw[0], pipeline)


def one_sound(raw: Any, pipeline: Any) -> tuple[np.ndarray, int]:
    """One soundtrack (channels, samples) as float32 (S, channels), and its sample rate.

    Raises:
        ArtifactError: samples that are NaN or infinite.
        UnsupportedError: the pipeline does not tell the sample rate.
    """
    sound = np.asarray(raw.float().cpu() if hasattr(raw, "cpu") else raw, dtype=np.float32)
    sound = sound[:, None] if sound.ndim == 1 else sound.T if sound.shape[0] <= 2 else sound
    if not np.isfinite(sound).all():
        raise ArtifactError("the model returned NaN or infinite sound; nothing was written; try --dtype float32")
    vocoder = getattr(pipeline, "vocoder", None)
    rate = getattr(getattr(vocoder, "config", None), "output_sampling_rate", None)
    if rate is None:
        raise UnsupportedError(
            f"{type(pipeline).__name__} does not tell the sample rate of its sound "
            "(no vocoder.config.output_sampling_rate)"
        )
    return sound, int(rate)


def fit_sound(sound: np.ndarray, rate: int, frames: int, fps: float | Fraction) -> np.ndarray:
    """A sound (S, channels) as long as its video, to the sample: silence is added at the end, or the end cut.

    Autoencoders of sound work in steps of their own, so that models return a little less than the video lasts.
    """
    wanted = round(Fraction(frames * rate) / Fraction(fps))
    return np.pad(sound[:wanted], ((0, max(wanted - len(sound), 0)), (0, 0)))
