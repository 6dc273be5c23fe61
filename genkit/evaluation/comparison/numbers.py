"""How far one output is from the baseline's of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from genkit.errors import counted
from genkit.evaluation.comparison import perceptual, sound, vmaf
from genkit.evaluation.metrics import SSIM_WINDOW, change_frames, colour_drift, psnr_frames, rel_l1, ssim_frames

HIGHER, LOWER, NEITHER = "higher", "lower", ""


@dataclass(frozen=True)
class Metric:
    """One number of the report.

    Args:
        title, unit: as shown.
        better: which way is closer to the baseline (or better): "higher", "lower", or "" for neither.
        digits: behind the point.
        help: one sentence.
    """

    title: str
    unit: str
    better: str
    digits: int
    help: str


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "dB", HIGHER, 1, "10 log10(1 / mean squared error) per frame, then the mean; equal is 100."),
    "ssim": Metric("SSIM", "", HIGHER, 3, "Structural similarity (Wang 2004), 11x11 Gaussian windows, mean of frames."),
    "ssim_worst": Metric("worst frame", "SSIM", HIGHER, 3, "SSIM of the frame that is furthest off."),
    "st_lpips": Metric(
        "ST-LPIPS", "", LOWER, 4, "Perceptual distance: shift-tolerant LPIPS on AlexNet (Ghildyal and Liu 2022), mean "
        "over frames. Not the LPIPS of 2018.",
    ),
    "kernel_distance": Metric(
        "kernel distance", "x 1000", LOWER, 2, "How far the outputs as a set are from the baseline's: squared MMD with "
        "the cubic kernel of KID on ST-LPIPS's AlexNet, from 8 prompts on; 0 on average where nothing but the noise "
        "differs.",
    ),
    "vmaf": Metric(
        "VMAF", "", HIGHER, 1, "Netflix's VMAF 0.6.1 (vmaf-torch), mean over frames, 0 to 100; fitted to 1920x1080: on "
        "small frames it compares variants, it grades nothing.",
    ),
    "latent_error": Metric(
        "latent error", "", LOWER, 3, "mean |latents - baseline's| / mean |baseline's| after the last step."
    ),
    "colour_drift": Metric("colour drift", "of 255", LOWER, 1, "Distance of the frames' mean colours."),
    "flicker": Metric(
        "flicker", "of 255", NEITHER, 2, "Mean change from frame to frame less the baseline's: above 0 flickers or "
        "moves more, below 0 less.",
    ),
    "judged": Metric(
        "judged", "%", HIGHER, 0, "Share of what the prompt says that the toy world's judge sees (not a distance to "
        "the baseline).",
    ),
    "mel_distance": Metric("log-mel distance", "dB", LOWER, 2, "Mean difference of 64-band log-mel spectrograms."),
    "onset_f1": Metric("same onsets", "", HIGHER, 2, "F1 of sound onsets within 0.25 s of the baseline's."),
    "onset_offset": Metric("onset offset", "ms", LOWER, 0, "Mean time between common onsets."),
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What one run made.

    Args:
        frames: uint8 (T, H, W, 3). audio: float32 (S, channels) at ``rate``, or None.
        latents: after every step, float32; empty where the pipeline does not tell.
    """

    frames: np.ndarray
    fps: Fraction | None = None
    audio: np.ndarray | None = None
    rate: int | None = None
    latents: Sequence[np.ndarray] = ()


@dataclass
class Numbers:
    """Distances: ``values`` one a name of :data:`METRICS`, ``frames`` and ``steps`` one a frame and step.

    ``missing`` says why a number is not there.
    """

    values: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def compare_outputs(output: Output, baseline: Output, with_perceptual: bool) -> Numbers:
    """Every number that can be had of two outputs; what cannot is named in ``missing``."""
    found = Numbers()
    if output.frames.shape != baseline.frames.shape:
        sizes = " and ".join("x".join(map(str, each.frames.shape[:3])) for each in (output, baseline))
        found.missing["frames"] = f"the outputs differ in size ({sizes}), so frames are not compared"
    else:
        _compare_frames(output.frames, baseline.frames, with_perceptual, found)
    _compare_latents(output.latents, baseline.latents, found)
    if output.audio is not None and baseline.audio is not None and output.rate is not None:
        if output.audio.shape != baseline.audio.shape or output.rate != baseline.rate:
            found.missing["sound"] = "the sounds differ in length or rate, so they are not compared"
        else:
            found.values["mel_distance"] = sound.mel_distance(output.audio, baseline.audio, output.rate)
            found.values |= sound.onset_numbers(output.audio, baseline.audio, output.rate)
    return found


def _compare_frames(frames: np.ndarray, baseline: np.ndarray, with_perceptual: bool, found: Numbers) -> None:
    pairs = [(frames[i : i + 1], baseline[i : i + 1]) for i in range(len(frames))]  # long clips in float64 are large

    def per_frame(name: str, function: Any) -> None:
        found.frames[name] = [float(function(one, other)[0]) for one, other in pairs]
        found.values[name] = float(np.mean(found.frames[name]))

    per_frame("psnr", psnr_frames)
    per_frame("colour_drift", colour_drift)
    if min(frames.shape[1:3]) >= SSIM_WINDOW:
        per_frame("ssim", ssim_frames)
        found.values["ssim_worst"] = min(found.frames["ssim"])
    else:
        found.missing["ssim"] = f"frames are smaller than {SSIM_WINDOW}x{SSIM_WINDOW}"
    if with_perceptual:
        _compare_perceptually(frames, baseline, found)
    if len(frames) > 1:
        changes = [255 * np.array([change_frames(clip[i : i + 2])[0] for i in range(len(clip) - 1)])
                   for clip in (frames, baseline)]  # fmt: skip
        found.frames["flicker"] = (changes[0] - changes[1]).tolist()
        found.values["flicker"] = float(np.mean(found.frames["flicker"]))


def _compare_perceptually(frames: np.ndarray, baseline: np.ndarray, found: Numbers) -> None:
    """What packages measure, each where it is installed and fits."""
    small = min(frames.shape[1:3])
    asked: list[tuple[str, Any, str | None]] = [
        ("st_lpips", perceptual.st_lpips_frames, perceptual.why_not() or _too_small(small, perceptual.LEAST))
    ]
    if len(frames) > 1:
        asked.append(("vmaf", vmaf.vmaf_frames, vmaf.why_not() or _too_small(small, vmaf.LEAST)))
    for name, function, reason in asked:
        if reason is not None:
            found.missing[name] = reason
            continue
        found.frames[name] = function(frames, baseline).tolist()
        found.values[name] = float(np.mean(found.frames[name]))


def _too_small(small: int, least: int) -> str | None:
    return f"frames are smaller than {least}x{least}" if small < least else None


def _compare_latents(latents: Sequence[np.ndarray], baseline: Sequence[np.ndarray], found: Numbers) -> None:
    if not latents or not baseline:
        found.missing["latent_error"] = "the pipeline does not tell its latents step by step"
    elif len(latents) != len(baseline) or latents[0].shape != baseline[0].shape:
        found.missing["latent_error"] = (
            f"{len(latents)} and {counted(len(baseline), 'step')}, latents {latents[0].shape} and "
            f"{baseline[0].shape}: they "
            "cannot be compared step by step"
        )
    else:
        errors = [rel_l1(one, other) for one, other in zip(latents, baseline, strict=True)]
        found.steps["latent_error"] = errors
        found.values["latent_error"] = errors[-1]
