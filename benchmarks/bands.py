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
#: The last variant of a round.
LAST = "another seed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks bands``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=8, help="seen prompts with one object")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)


def variants() -> dict[str, Any]:
    """Ways to run the model that end at all distances from dense attention."""
    import genkit

    later = genkit.Schedule(steps="2:")
    return {
        "radial": {"attention": genkit.Radial(), "schedule": later},
        "mixture_of_block": {"attention": genkit.MixtureOfBlock(), "schedule": later},
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
    makers[LAST] = OtherSeed(pipe, call=call, fps=fps)
    found: list[dict[str, Any]] = []

    class Judge(Follower):
        def round_ended(self, comparison: Any, outputs: Any) -> None:
            for row in comparison.rows[1:]:
                if row.name in outputs:
                    seen = truth(outputs[row.name].frames, outputs["dense"].frames)
                    values, made = row.runs[-1].values, row.runs[-1]
                    found.append({
                        "variant": row.name, "prompt": made.prompt, "seed": made.seed, "judge": seen,
                        "ssim": values["ssim"], "worst": values["ssim_worst"], "psnr": values["psnr"],
                        "st_lpips": values.get("st_lpips"),
                    })  # fmt: skip

    for number, (_, caption) in enumerate(draw_prompts("train", prompts, seed=61)):
        rows = [Row(name, name, name == "dense") for name in makers]
        Loop(makers, Comparison(rows, [caption], [300 + number]), Judge(), _has_perceptual(), number == 0).run()
        yield from found
        found.clear()
        tell("prompts", number + 1, prompts)


def _has_perceptual() -> bool:
    from genkit.evaluation.comparison.perceptual import why_not

    return why_not() is None


def best_limits(rows: Sequence[dict[str, Any]], measure: str) -> tuple[float, float, float]:
    """The two limits of a measure that agree best with the judge, and the share of pairs that agrees; of equally good
    ones the middle."""
    values = sorted({row[measure] for row in rows})
    grid = [0.0, *((one + other) / 2 for one, other in zip(values, values[1:], strict=False)), 1e9]
    scored = [(agreement(rows, measure, same, kept), same, kept) for same in grid for kept in grid if kept <= same]
    most = max(scored)[0]
    best = sorted((same, kept) for share, same, kept in scored if share >= most - 1e-12)
    return (*best[len(best) // 2], most)


def agreement(rows: Sequence[dict[str, Any]], measure: str, same: float, kept: float) -> float:
    """Share of pairs whose band by a measure is the judge's."""
    return float(np.mean([named(row[measure], same, kept) == row["judge"] for row in rows]))


def named(value: float, same: float, kept: float) -> str:
    """The band of a value under given limits."""
    from genkit.evaluation.comparison.bands import BANDS

    return BANDS[0] if value >= same else BANDS[1] if value >= kept else BANDS[2]


def left_out(rows: Sequence[dict[str, Any]], measure: str) -> float:
    """Agreement on prompts that the limits were not fitted on, each left out in turn."""
    hits = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        same, kept, _ = best_limits([row for row in rows if row["prompt"] != prompt], measure)
        hits += [named(row[measure], same, kept) == row["judge"] for row in rows if row["prompt"] == prompt]
    return float(np.mean(hits))


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report after every prompt."""
    facts = environment()
    rows: list[dict[str, Any]] = []
    for row in samples(options.model, options.prompts, options.steps):
        rows.append(row)
        if row["variant"] == LAST and len({each["prompt"] for each in rows}) > 1:
            about = {"environment": facts, "steps": options.steps, "model": options.model, "pairs": rows}
            report("bands", about, text_of(about), options.output)
    return 0


def text_of(about: dict[str, Any]) -> str:
    """The page of results."""
    from genkit.evaluation.comparison.bands import BANDS, band

    rows = about["pairs"]
    called = [(row, band({"psnr": row["psnr"], "ssim_worst": row["worst"]})) for row in rows]
    share = float(np.mean([row["judge"] == name for row, name in called]))
    prompts = len({row["prompt"] for row in rows})
    error = (share * (1 - share) / len(rows)) ** 0.5
    measures = []
    nearness = [{**row, "st_lpips": -row["st_lpips"]} for row in rows if row["st_lpips"] is not None]
    titles = {"ssim": "SSIM, mean", "worst": "SSIM, worst frame", "psnr": "PSNR", "st_lpips": "ST-LPIPS, negated"}
    for measure, title in titles.items():
        if measure == "st_lpips" and len(nearness) < len(rows):
            continue
        same, kept, fitted = best_limits(nearness or rows, measure)
        measures.append({
            "measure": title, "same from": f"{same:.3g}", "kept from": f"{kept:.3g}", "agrees": f"{100 * fitted:.0f} %",
            "on prompts left out": f"{100 * left_out(nearness or rows, measure):.0f} %",
        })  # fmt: skip
    seen = [
        {
            "the judge": name, "pairs": len(own),
            **{f"called {each}": sum(word == each for row, word in called if row["judge"] == name) for each in BANDS},
            "SSIM": _span(own, "ssim", 3), "worst frame": _span(own, "worst", 3), "PSNR": _span(own, "psnr", 1),
        }
        for name in BANDS
        for own in [[row for row in rows if row["judge"] == name]]
    ]  # fmt: skip
    by_variant = [
        {
            "variant": name,
            "SSIM": f"{np.mean([row['ssim'] for row in own]):.3f}",
            "PSNR": f"{np.mean([row['psnr'] for row in own]):.1f}",
            **{each: sum(row["judge"] == each for row in own) for each in BANDS},
        }
        for name in dict.fromkeys(row["variant"] for row in rows)
        for own in [[row for row in rows if row["variant"] == name]]
    ]
    return "\n".join(
        [
            "# The bands of genkit compare",
            "",
            machine_line(about["environment"]),
            f"{about['model']}, 25x128x128, {about['steps']} steps, {prompts} seen prompts, "
            f"{len(rows)} pairs of clips.",
            f"What the judge says: the same objects with the same motions, their centres within {100 * NEAR:.0f} % of",
            "the width on average (same trajectory), only the same objects and motions (scene kept), or neither.",
            "",
            f"The bands in use agree with the judge in {100 * share:.0f} ± {100 * error:.0f} % of the pairs.",
            "",
            table(seen),
            "",
            "Limits that would agree best, by measure, and how they do on prompts that they were not fitted on:",
            "",
            table(measures),
            "",
            "What the judge says, by variant:",
            "",
            table(by_variant),
            "",
        ]
    )


def _span(rows: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    """Lowest, mean and highest value."""
    values = [row[name] for row in rows]
    return "" if not values else f"{min(values):.{digits}f} · {np.mean(values):.{digits}f} · {max(values):.{digits}f}"
