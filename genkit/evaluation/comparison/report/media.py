"""Outputs as they are played in the page: frames as WebP, sound as WAV."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass, field

import numpy as np

from genkit.evaluation.comparison.numbers import Output

#: Longest side in the page, and pixels of a clip up to which its frames are stored without loss.
LONGEST, LOSSLESS = 640, 2_000_000
QUALITY = 84


@dataclass(frozen=True)
class Clip:
    """Frames, a WebP file each, and the sound as a WAV file or None."""

    frames: list[bytes]
    sound: bytes | None = None


@dataclass
class Shown:
    """The outputs of one prompt and seed, by variant."""

    prompt: str
    seed: int
    fps: float | None
    clips: dict[str, Clip] = field(default_factory=dict)


def encoded(output: Output) -> tuple[Clip, bool]:
    """A clip for the page, and whether it was made smaller or coded with loss."""
    from PIL import Image

    frames = output.frames
    height, width = frames.shape[1:3]
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    exact = scale == 1 and frames.shape[0] * height * width <= LOSSLESS
    files = []
    for frame in frames:
        picture = Image.fromarray(frame)
        if scale < 1:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        held = io.BytesIO()
        if exact:
            picture.save(held, "WEBP", lossless=True, quality=60, method=3)
        else:
            picture.save(held, "WEBP", quality=QUALITY, method=3)
        files.append(held.getvalue())
    sound = None if output.audio is None or output.rate is None else wav(output.audio, output.rate)
    return Clip(files, sound), not exact


def wav(sound: np.ndarray, rate: int) -> bytes:
    """A sound (S, channels) in [-1, 1] as a WAV file of 16 bits."""
    samples = np.clip(np.rint(np.asarray(sound) * 32767), -32768, 32767).astype("<i2")
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return held.getvalue()
