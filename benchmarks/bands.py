"""How often the words "same trajectory", "scene kept", "diverged" agree with what the toy world's judge sees."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import tell

#: Mean distance of the objects' centres, in shares of the width, up to which a trajectory is the same.
NEAR = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks bands``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=8, help="seen prompts with one object (default 8)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)


def variants() -> dict[str, Any]:
    """Ways to run the model that end at all distances from dense attention."""
    import genkit

    later = genkit.Schedule(steps="2:")
    return {
        "radial": {"attention": genkit.Radial(), "schedule": later},
        "mixture_of_block": {"attention": genkit.MixtureOfBlock(), "schedule": later},
        "neighborhood 5x7x7": {"attention": genkit.Neighborhood(size=(5, 7, 7)), "schedule": later},
        "neighborhood 3x5x5": {"attention": genkit.Neighborhood(size=(3, 5, 5)), "schedule": later},
        "neighborhood 3x3x3": {"attention": genkit.Neighborhood(size=(3, 3, 3)), "schedule": later},
        "block_select": {"attention": genkit.BlockSelect()},
        "agent": {"attention": genkit.Agent(), "schedule": later},
    }


def truth(clip: np.ndarray, baseline: np.ndarray) -> str:
    """The band by what the judge sees: the same objects doing the same at the same places, only the same, or not."""
    from genkit.evaluation.comparison.bands import DIVERGED, KEPT, SAME
    from genkit.world.judge import judge_clip

    one, other = judge_clip(clip), judge_clip(baseline)

    def words(verdict: Any) -> Any:
        return verdict.background, sorted((each.colour, each.nearest_shape, each.motion) for each in verdict.actors)

    if words(one) != words(other):
        return DIVERGED
    by_colour = {each.colour: each for each in other.actors}
    apart = [
        np.nanmean(np.hypot(each.x - by_colour[each.colour].x, each.y - by_colour[each.colour].y)) / clip.shape[2]
        for each in one.actors
    ]
    return SAME if max(apart, default=0.0) <= NEAR else KEPT


def samples(model: str, prompts: int, steps: int) -> Iterator[dict[str, Any]]:
    """One row a pair of clips: variant, SSIM, PSNR and the judge's band."""
    import genkit
    from genkit.evaluation.comparison.loop import Follower, Loop
    from genkit.evaluation.comparison.makers import PipelineMaker
    from genkit.evaluation.comparison.results import Comparison, Row
    from genkit.evaluation.toy import draw_prompts
    from genkit.pipelines.kinds import native_fps

    pipe = genkit.load(model)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "num_inference_steps": steps, "guidance_scale": 4.0, "num_frames": 25, "height": 128, "width": 128,
        "max_sequence_length": 64,
    }  # fmt: skip
    from fractions import Fraction

    fps = Fraction(native_fps(type(pipe).__name__))

    class OtherSeed(PipelineMaker):
        """The model itself, from other noise."""

        def make(self, prompt: str, seed: int, *rest: Any) -> Any:
            return super().make(prompt, seed + 10_000, *rest)

    makers: dict[str, Any] = {"dense": PipelineMaker(pipe, call=call, fps=fps)}
    for name, given in variants().items():
        options = {"schedule": given["schedule"]} if "schedule" in given else {}
        makers[name] = PipelineMaker(pipe, given["attention"], options, None, call, fps)
    makers["another seed"] = OtherSeed(pipe, call=call, fps=fps)
    found: list[dict[str, Any]] = []

    class Judge(Follower):
        def round_ended(self, comparison: Any, outputs: Any) -> None:
            for row in comparison.rows[1:]:
                if row.name in outputs:
                    seen = truth(outputs[row.name].frames, outputs["dense"].frames)
                    values = row.runs[-1].values
                    about = {"variant": row.name, "prompt": row.runs[-1].prompt, "seed": row.runs[-1].seed}
                    found.append({**about, "ssim": values["ssim"], "worst": values["ssim_worst"], "psnr": values["psnr"], "judge": seen,
                                  "st_lpips": values.get("st_lpips")})  # fmt: skip

    for number, (_, caption) in enumerate(draw_prompts("train", prompts, seed=61)):
        rows = [Row(name, name, name == "dense") for name in makers]
        Loop(makers, Comparison(rows, [caption], [300 + number]), Judge(), _has_perceptual(), number == 0).run()
        yield from found
        found.clear()
        tell("prompts", number + 1, prompts)


def _has_perceptual() -> bool:
    from genkit.evaluation.comparison.perceptual import why_not

    return why_not() is None


def best_thresholds(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """SSIM from which trajectories are the same and from which scenes are kept that agree best with the judge, in steps
    of 0.01, and the share that agrees; the middle of equally good ones."""
    grid = np.round(np.arange(0.40, 1.0, 0.01), 2)
    scored = [(agreement(rows, same, kept), same, kept) for same in grid for kept in grid if kept < same]
    most = max(scored)[0]
    best = [(same, kept) for share, same, kept in scored if share >= most - 1e-12]
    same, kept = best[len(best) // 2]
    return float(same), float(kept), most


def agreement(rows: Sequence[dict[str, Any]], same: float, kept: float) -> float:
    """Share of pairs whose band by SSIM is the judge's."""
    return float(np.mean([named(row["ssim"], same, kept) == row["judge"] for row in rows]))


def named(ssim: float, same: float, kept: float) -> str:
    """The band of an SSIM under given limits."""
    from genkit.evaluation.comparison.bands import BANDS

    return BANDS[0] if ssim >= same else BANDS[1] if ssim >= kept else BANDS[2]


def left_out(rows: Sequence[dict[str, Any]]) -> float:
    """Agreement on prompts that the limits were not fitted on, each left out in turn."""
    hits = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        same, kept, _ = best_thresholds([row for row in rows if row["prompt"] != prompt])
        hits += [named(row["ssim"], same, kept) == row["judge"] for row in rows if row["prompt"] == prompt]
    return float(np.mean(hits))


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    from genkit.evaluation.comparison.bands import BANDS, SSIM_KEPT, SSIM_SAME

    facts = environment()
    rows = list(samples(options.model, options.prompts, options.steps))
    same, kept, share = best_thresholds(rows)
    count = len(rows)
    error = 100 * (share * (1 - share) / count) ** 0.5
    used = agreement(rows, SSIM_SAME, SSIM_KEPT)
    by_band = [
        {
            "judge": name,
            "pairs": len(own),
            "SSIM": f"{np.mean([row['ssim'] for row in own]):.3f}" if own else "",
            "lowest to highest": f"{min(row['ssim'] for row in own):.3f} to {max(row['ssim'] for row in own):.3f}"
            if own else "",
            "PSNR": f"{np.mean([row['psnr'] for row in own]):.1f}" if own else "",
            **{f"called {band}": sum(named(row["ssim"], SSIM_SAME, SSIM_KEPT) == band for row in own) for band in BANDS},
        }
        for name in BANDS
        for own in [[row for row in rows if row["judge"] == name]]
    ]  # fmt: skip
    by_variant = [
        {
            "variant": name,
            "SSIM": f"{np.mean([row['ssim'] for row in own]):.3f}",
            "PSNR": f"{np.mean([row['psnr'] for row in own]):.1f}",
            **{band: sum(row["judge"] == band for row in own) for band in BANDS},
        }
        for name in dict.fromkeys(row["variant"] for row in rows)
        for own in [[row for row in rows if row["variant"] == name]]
    ]
    text = "\n".join(
        [
            "# The bands of genkit compare",
            "",
            machine_line(facts),
            f"{options.model}, 25x128x128, {options.steps} steps, {options.prompts} seen prompts, {count} pairs of clips. "
            f"The judge's band: the same objects with the same motions, their centres within {100 * NEAR:.0f} % of the width "
            "on average (same trajectory), only the same objects and motions (scene kept), or neither (diverged).",
            "",
            f"Best limits of SSIM: {same:.2f} and {kept:.2f}, which agree with the judge in {100 * share:.0f} ± {error:.0f} % of "
            f"the pairs ({100 * left_out(rows):.0f} % of prompts that they were not fitted on). In use: {SSIM_SAME:g} and "
            f"{SSIM_KEPT:g}, {100 * used:.0f} %.",
            "",
            table(by_band),
            "",
            "What the judge saw, by variant:",
            "",
            table(by_variant),
            "",
        ]
    )
    report(
        "bands", {"environment": facts, "best": [same, kept, share], "used": used, "pairs": rows}, text, options.output
    )
    return 0
