"""Fidelity and steadiness of clips by arithmetic alone: no network, float64 inside.

Clips are (T, H, W, C) arrays, uint8 or floats in [0, 1]. PSNR and SSIM to a dense run measure closeness to it, not
quality:
print the dense model's own seed-to-seed values beside them as the scale. A frozen clip has the best flicker, so print a
motion number beside that one.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from genkit.errors import UsageError, explain

PSNR_CAP = 100.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def as_unit(frames: np.ndarray, what: str = "frames") -> np.ndarray:
    """A clip as float64 in [0, 1], shape (T, H, W, C).

    Raises:
        UsageError: another shape or type, an empty axis, or values outside [0, 1] (a clip in 0..255 must be uint8).
    """
    array = np.asarray(frames)
    if array.ndim != 4 or 0 in array.shape:
        raise UsageError(explain(what, array.shape, "an array (frames, height, width, channels) without an empty axis"))
    if array.dtype == np.uint8:
        return array.astype(np.float64) / 255.0
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(explain(what, array.dtype, "uint8, or floats in [0, 1]"))
    unit = array.astype(np.float64)
    if not np.isfinite(unit).all() or unit.min() < -1e-6 or unit.max() > 1 + 1e-6:
        raise UsageError(f"{what}: floats must lie in [0, 1] and be finite, got {np.min(unit)} to {np.max(unit)}")
    return unit


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_unit(a, "first clip"), as_unit(b, "second clip")
    if first.shape != second.shape:
        raise UsageError(f"the clips differ in shape: {first.shape} and {second.shape}")
    return first, second


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(1 / mean squared error) per frame, averaged over frames, 100 at
    most."""
    return float(np.mean(psnr_frames(a, b)))


def psnr_frames(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """:func:`psnr` of every frame, (T,)."""
    first, second = _pair(a, b)
    errors = np.mean((first - second) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(PSNR_CAP, -10.0 * np.log10(errors))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames and channels.

    11x11 Gaussian windows of sigma 1.5 that lie wholly inside the frame; C1 = 0.01^2, C2 = 0.03^2 for a range of 1.

    Raises:
        UsageError: frames smaller than 11x11.
    """
    return float(np.mean(ssim_frames(a, b)))


def ssim_frames(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """:func:`ssim` of every frame, (T,)."""
    first, second = _pair(a, b)
    if min(first.shape[1:3]) < SSIM_WINDOW:
        raise UsageError(explain("frame size for ssim", first.shape[1:3], f"at least {SSIM_WINDOW}x{SSIM_WINDOW}"))
    return np.array([_ssim_frame(x, y) for x, y in zip(first, second, strict=True)])


def colour_drift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of the mean colours of every frame, (T,): Euclidean over red, green and blue, in values of 0..255."""
    first, second = _pair(a, b)
    return 255.0 * np.linalg.norm(first.mean((1, 2)) - second.mean((1, 2)), axis=-1)


def change_frames(frames: np.ndarray) -> np.ndarray:
    """Mean |x_t - x_(t-1)| between neighbouring frames, (T - 1,): what :func:`flicker` averages.

    Raises:
        UsageError: fewer than two frames.
    """
    return np.abs(np.diff(_moving(frames, 2, "change_frames"), axis=0)).mean((1, 2, 3))


def _ssim_frame(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + SSIM_C1) * (2 * cov + SSIM_C2)
    return float(np.mean(above / ((mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2))))


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian means over the windows inside an image (H, W, C): rows first, then columns."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    rows = sliding_window_view(image, SSIM_WINDOW, axis=0) @ weights
    return sliding_window_view(rows, SSIM_WINDOW, axis=1) @ weights


def rel_l1(a: np.ndarray, b: np.ndarray) -> float:
    """mean|a - b| / mean|b| of any two arrays of equal shape, for latents: ``b`` is the reference.

    Raises:
        UsageError: different shapes, or a reference that is zero everywhere.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or not first.size:
        raise UsageError(f"rel_l1 needs two arrays of equal, non-empty shape, got {first.shape} and {second.shape}")
    scale = np.mean(np.abs(second))
    if scale == 0:
        raise UsageError("rel_l1: the reference is zero everywhere, so no relative error exists")
    return float(np.mean(np.abs(first - second)) / scale)


def flicker(frames: np.ndarray) -> float:
    """1 - mean |x_t - x_(t-1)|: 1 for a frozen clip, 0 for one that alternates between black and white.

    Raises:
        UsageError: fewer than two frames.
    """
    clip = _moving(frames, 2, "flicker")
    return float(1.0 - np.mean(np.abs(np.diff(clip, axis=0))))


def interp_smoothness(frames: np.ndarray) -> float:
    """1 - mean over odd t of |x_t - (x_(t-1) + x_(t+1)) / 2|: how well the even frames predict the odd ones.

    Raises:
        UsageError: fewer than three frames.
    """
    clip = _moving(frames, 3, "interp_smoothness")
    middle = clip[1:-1:2]
    count = len(middle)
    between = (clip[0 : 2 * count : 2] + clip[2 : 2 * count + 1 : 2]) / 2
    return float(1.0 - np.mean(np.abs(middle - between)))


def _moving(frames: np.ndarray, least: int, name: str) -> np.ndarray:
    clip = as_unit(frames)
    if len(clip) < least:
        raise UsageError(f"{name} needs at least {least} frames, got {len(clip)}")
    return clip
