"""Attention methods against dense attention on a video model: the same prompts, seeds and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.toy_common import share, tell

#: What a clip is judged by; the mean share of these that is right is what a method's loss is told in.
JUDGED = ("background", "colour", "nearest shape", "motion")


@dataclass(frozen=True)
class Variant:
    """A method with its settings and schedule, as texts."""

    method: str
    settings: dict[str, str]
    schedule: dict[str, str]

    def describe(self) -> str:
        """The method and its schedule as shown in the table."""
        from genkit.attention import registry

        method = registry.build(self.method, self.settings)
        return f"{method.describe()} {', '.join(f'{key} {value}' for key, value in self.schedule.items())}".strip()


@dataclass
class Measured:
    """What one row of the table is made of, a list entry per clip."""

    readings: list[dict[str, bool]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    reports: list = field(default_factory=list)

    def compare(self, clip: np.ndarray, dense: np.ndarray) -> None:
        """Note how alike a clip is to the dense one."""
        from genkit.evaluation.metrics import psnr, ssim

        self.psnr.append(psnr(clip, dense))
        self.ssim.append(ssim(clip, dense))

    def likeness(self, note: str = "") -> dict[str, str]:
        """Table cells of the likeness to dense attention."""
        return {
            "PSNR to dense": f"{np.mean(self.psnr):.1f}{note}" if self.psnr else "",
            "SSIM to dense": f"{np.mean(self.ssim):.3f}{note}" if self.ssim else "",
        }


def comparison_rows(
    pipeline,
    variants: Sequence[Variant],
    prompts: int,
    request,
    save: Callable[[list[dict[str, object]], int], None] | None = None,
) -> list[dict[str, object]]:
    """One row for dense attention and one per variant.

    Every prompt runs through all rows before the next one begins, so that a change in the machine's pace meets all rows
    alike and a run that is stopped has whole prompts to show. Densities are those of the calls the method ran;
    "attention FLOPs" is the share of dense attention's over all layers and steps of the run, those the schedule leaves
    dense included. The row of dense attention compares with clips of other seeds: what a PSNR means when nothing but
    the noise differs.

    Args:
        pipeline: a text-to-video pipeline.
        variants: what to compare.
        prompts: seen prompts with one object.
        request: size and sampling of the clips.
        save: called with the rows so far and the number of prompts they are of, after every prompt.
    """
    import genkit
    from genkit.attention import registry
    from genkit.evaluation.toy import draw_prompts, generate_clips, judge_clips

    dense, found = Measured(), [Measured() for _ in variants]
    rows: list[dict[str, object]] = []
    for index, (scene, caption) in enumerate(draw_prompts("train", prompts, seed=77)):

        def made(row: Measured, seed: int, scene=scene, caption=caption) -> np.ndarray:
            clips, seconds = generate_clips(pipeline, [caption], request, seed)
            row.readings += judge_clips([scene], clips)[1]
            row.seconds.append(seconds)
            return clips[0]

        clip = made(dense, 500 + index)
        if index < 2:
            dense.compare(made(Measured(), 900 + index), clip)
        for row, variant in zip(found, variants, strict=True):
            method = registry.build(variant.method, variant.settings)
            with genkit.patch(pipeline, method, schedule=genkit.Schedule(**variant.schedule)) as handle:
                row.compare(made(row, 500 + index), clip)
                row.reports.append(handle.report())
        rows = _rows(dense, found, variants)
        if save:
            save(rows, index + 1)
        tell("prompts", index + 1, prompts)
    return rows


def _rows(dense: Measured, found: Sequence[Measured], variants: Sequence[Variant]) -> list[dict[str, object]]:
    row = {"method": "dense", "density computed": "1.000", "density executed": "1.000", "attention FLOPs": "1.00"}
    row |= {"attention ms per call": "", "dense ms per call": "", "s per clip": f"{np.mean(dense.seconds):.1f}"}
    rows = [row | dense.likeness(" (another seed)") | _judged_readings(dense.readings) | {"change": ""}]
    for measured, variant in zip(found, variants, strict=True):
        row = {"method": variant.describe()} | _cost(measured.reports)
        row |= {"s per clip": f"{np.mean(measured.seconds):.1f}"} | measured.likeness()
        rows.append(row | _judged_readings(measured.readings) | {"change": _change(measured.readings, dense.readings)})
    return rows


def _change(readings: Sequence[dict[str, bool]], dense: Sequence[dict[str, bool]]) -> str:
    """Points by which the judged attributes differ from dense attention's, prompt by prompt, and the standard error."""
    points = [
        100 * (np.mean([one[name] for name in JUDGED]) - np.mean([other[name] for name in JUDGED]))
        for one, other in zip(readings, dense, strict=True)
    ]
    error = np.std(points, ddof=1) / np.sqrt(len(points)) if len(points) > 1 else float("nan")
    return f"{np.mean(points):+.1f} ± {error:.1f}"


def _cost(reports: Sequence) -> dict[str, str]:
    ran, outside = (sum(getattr(report, name) for report in reports) for name in ("ran", "outside"))
    seconds, own = (sum(getattr(report, name) for report in reports) for name in ("seconds", "own_seconds"))
    # Methods that choose from the data differ a little from clip to clip.
    densities = [report.density for report in reports if report.density is not None]
    computed, executed = np.mean([(one.computed, one.executed) for one in densities], 0) if densities else (None, None)
    return {
        "density computed": f"{computed:.3f}" if densities else "",
        "density executed": f"{executed:.3f}" if densities else "",
        "attention FLOPs": f"{np.mean([report.work for report in reports]):.2f}" if densities else "",
        "attention ms per call": f"{1e3 * seconds / ran:.1f}",
        # The calls the schedule leaves dense, timed in the same run.
        "dense ms per call": f"{1e3 * own / outside:.1f}" if outside else "",
    }


def _judged_readings(readings: Sequence[dict[str, bool]]) -> dict[str, str]:
    """Table cells of single results."""
    from genkit.evaluation.toy import ATTRIBUTES, accuracy_of

    return judged(accuracy_of(readings, ATTRIBUTES))


def judged(result) -> dict[str, str]:
    """Table cells of the attributes that every run is judged by."""
    return {name: share(result, name) if name in result.right else "" for name in (*JUDGED, "all")}
