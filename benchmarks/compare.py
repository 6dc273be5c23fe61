"""Attention methods against dense attention on a video model: the same prompts, seeds and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.toy_common import share, tell


@dataclass(frozen=True)
class Variant:
    """A method with its settings and schedule, as texts."""

    method: str
    settings: dict[str, str]
    schedule: dict[str, str]


def comparison_rows(pipeline, variants: Sequence[Variant], prompts: int, request) -> list[dict[str, object]]:
    """One row for dense attention and one per variant.

    Densities are those of the calls the method ran; "attention FLOPs" is the share of dense attention's over all calls
    of the run, those the schedule leaves dense included. The row of dense attention compares with clips of other seeds:
    what a PSNR means when nothing but the noise differs.

    Args:
        pipeline: a text-to-video pipeline.
        variants: what to compare.
        prompts: seen prompts with one object.
        request: size and sampling of the clips.
    """
    import genkit
    from genkit.attention import registry
    from genkit.evaluation.toy import draw_prompts, generate_clips, judge_clips

    chosen = draw_prompts("train", prompts, seed=77)
    scenes, captions = [scene for scene, _ in chosen], [text for _, text in chosen]
    dense, seconds = generate_clips(pipeline, captions, request, 500, lambda d, t: tell("dense", d, t))
    other, _ = generate_clips(pipeline, captions[:2], request, seed=900)
    result, _ = judge_clips(scenes, dense)
    row = {"method": "dense", "density computed": "1.000", "density executed": "1.000", "attention FLOPs": "1.00"}
    row |= {"attention ms per call": "", "dense ms per call": "", "s per clip": f"{seconds / prompts:.1f}"}
    rows = [row | _likeness(other, dense[:2], " (another seed)") | judged(result)]
    for variant in variants:
        method = registry.build(variant.method, variant.settings)
        with genkit.patch(pipeline, method, schedule=genkit.Schedule(**variant.schedule)) as handle:
            clips, seconds = generate_clips(
                pipeline, captions, request, 500, lambda d, t, n=variant.method: tell(n, d, t)
            )
            report = handle.report()
        result, _ = judge_clips(scenes, clips)
        row = {"method": f"{method.describe()} {schedule_text(variant.schedule)}".strip()}
        row |= _cost(report) | {"s per clip": f"{seconds / prompts:.1f}"}
        rows.append(row | _likeness(clips, dense) | judged(result))
    return rows


def schedule_text(schedule: dict[str, str]) -> str:
    """The schedule as shown in the table."""
    return ", ".join(f"{key} {value}" for key, value in schedule.items())


def _cost(report) -> dict[str, str]:
    density = report.density
    calls = report.ran + report.outside
    executed = 1.0 if density is None else density.executed
    return {
        "density computed": "" if density is None else f"{density.computed:.3f}",
        "density executed": "" if density is None else f"{density.executed:.3f}",
        "attention FLOPs": "" if density is None else f"{(report.ran * executed + report.outside) / calls:.2f}",
        "attention ms per call": f"{1e3 * report.seconds / report.ran:.1f}",
        # The calls the schedule leaves dense, timed in the same run.
        "dense ms per call": f"{1e3 * report.own_seconds / report.outside:.1f}" if report.outside else "",
    }


def _likeness(clips: np.ndarray, dense: np.ndarray, note: str = "") -> dict[str, str]:
    from genkit.evaluation.metrics import psnr, ssim

    pairs = list(zip(clips, dense, strict=True))
    return {
        "PSNR to dense": f"{np.mean([psnr(a, b) for a, b in pairs]):.1f}{note}",
        "SSIM to dense": f"{np.mean([ssim(a, b) for a, b in pairs]):.3f}{note}",
    }


def judged(result) -> dict[str, str]:
    """Table cells of the attributes that every run is judged by."""
    names = ("background", "colour", "nearest shape", "motion", "all")
    return {name: share(result, name) if name in result.right else "" for name in names}
