"""Animated GIF and WebP, single PNG images and numbered PNG frames, with settings in the place each format has for
them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from genkit.media.video import check_frames, exact_fps

PNG_KEY = "genkit"
EXIF_DESCRIPTION = 0x010E
PALETTE_SAMPLES = 16
# Lossless WebP keeps the toy models' flat colours exactly and stays small for them; beyond this many pixels it
# becomes huge.
LOSSLESS_PIXELS = 16_000_000


def durations(count: int, fps: Fraction, unit: int) -> list[int]:
    """Milliseconds of each frame in multiples of ``unit`` ms, rounded so that no error accumulates over the clip."""
    edges = [round(Fraction(1000 * index, unit) / fps) for index in range(count + 1)]
    return [max(1, stop - start) * unit for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 as (T, factor*H, factor*W, 3), by Lanczos interpolation; unchanged for a factor of 1.

    H.264 in a browser stores colour at half resolution, which softens the edges of very small clips. Enlarged twice
    or more they keep every pixel's own colour.
    """
    frames = check_frames(frames)
    return frames if factor == 1 else resized(frames, frames.shape[1] * factor, frames.shape[2] * factor)


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 at another size, by Lanczos interpolation."""
    from PIL import Image

    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def crop(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
    """How a picture fills another size: scaled (height, width) that just cover it, then (top, left) of the cut."""
    scale = max(sides[0] / height, sides[1] / width)
    scaled = max(sides[0], round(height * scale)), max(sides[1], round(width * scale))
    return *scaled, (scaled[0] - sides[0]) // 2, (scaled[1] - sides[1]) // 2


def write_gif(path: str | Path, frames: np.ndarray, fps: float | str | Fraction, *, comment: str | None = None) -> None:
    """Write a looping GIF of frames (T, H, W, 3) uint8.

    One palette of 256 colours serves all frames, so still areas do not flicker. GIF times are multiples of 10 ms;
    they are rounded without drift. Consecutive equal frames are stored once with their times added.
    """
    from PIL import Image

    frames = check_frames(frames)
    picks = frames[np.unique(np.linspace(0, len(frames) - 1, PALETTE_SAMPLES).round().astype(int))]
    palette = Image.fromarray(picks.reshape(-1, frames.shape[2], 3)).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    extra = {"comment": comment.encode("ascii")} if comment is not None else {}
    times = durations(len(frames), exact_fps(fps), 10)
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=times, loop=0, disposal=1, **extra
    )


def write_webp(
    path: str | Path, frames: np.ndarray, fps: float | str | Fraction, *, comment: str | None = None
) -> None:
    """Write a looping WebP of frames (T, H, W, 3) uint8: lossless up to 16 million pixels in all, quality 92 beyond.
    Times in ms without drift."""
    from PIL import Image

    frames = check_frames(frames)
    images = [Image.fromarray(frame) for frame in frames]
    quality = (
        {"lossless": True, "quality": 80}
        if frames[..., 0].size <= LOSSLESS_PIXELS
        else {"lossless": False, "quality": 92}
    )
    extra = {}
    if comment is not None:
        exif = Image.Exif()
        exif[EXIF_DESCRIPTION] = comment
        extra["exif"] = exif.tobytes()
    times = durations(len(frames), exact_fps(fps), 1)
    images[0].save(
        path, format="WEBP", save_all=True, append_images=images[1:], duration=times, loop=0, **quality, **extra
    )


def write_png(path: str | Path, image: np.ndarray, *, comment: str | None = None) -> None:
    """Write one image (H, W, 3) uint8, lossless, with ``comment`` in a text chunk named ``genkit``."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    if comment is not None:
        info.add_text(PNG_KEY, comment)
    Image.fromarray(check_frames(image[None])[0]).save(path, format="PNG", pnginfo=info)
