"""What the benchmarks of the image models share: judged accuracy on seen and held-out prompts, by sampler."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, shares, split_counts, tell


def add_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """Options of ``python -m benchmarks toy_image`` and ``toy_dit``."""
    parser.add_argument("--model", default=model)
    parser.add_argument("--prompts", type=int, default=400, help="prompts in all, half of them seen (default 400)")
    parser.add_argument("--side", type=int, default=128, help="pixels per side (default 128)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(name: str, options: argparse.Namespace, lcm_steps: Sequence[int] = ()) -> int:
    """Measure, print and write the report.

    Args:
        name: of the benchmark and its files.
        options: from :func:`add_arguments`.
        lcm_steps: step counts of further rows that are sampled as latent consistency models are.
    """
    import genkit
    from genkit.evaluation.toy_picture import PictureRequest, use_lcm

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    counts = split_counts(options.prompts)
    request = PictureRequest.of_model(options.model, options.side, options.side, options.steps)
    plans = [(title, split, counts[split], None) for split, title in SPLITS]
    few = max(options.prompts // 8, 4)
    plans += [(f"seen, {count} objects", "train", few, count) for count in ((2, 3) if options.side >= 120 else ())]
    rows = [_row(pipeline, title, *plan, request) for title, *plan in plans]
    if lcm_steps:
        use_lcm(pipeline)
    for steps in lcm_steps:
        quick = PictureRequest.of_model(options.model, options.side, options.side, steps)
        rows.append(_row(pipeline, f"seen, LCM sampling in {steps} steps", "train", counts["train"], None, quick))
    facts = environment()
    data = {
        "environment": facts,
        "model": options.model,
        "side": options.side,
        "steps": options.steps,
        "call": request.call,
        "accuracy": rows,
    }
    text = _report(name, data, facts)
    report(name, data, text, options.output)
    return 0


def _row(pipeline, title: str, split: str, count: int, actors: int | None, request) -> dict[str, object]:
    from genkit.evaluation.toy_picture import ATTRIBUTES, draw_picture_prompts, generate_pictures, judge_pictures

    chosen = draw_picture_prompts(split, count, 1234, actors, request.height)
    images, seconds = generate_pictures(
        pipeline, [text for _, text in chosen], request, 1000, lambda done, total: tell(title, done, total)
    )
    result, _ = judge_pictures([picture for picture, _ in chosen], images)
    cells = shares(result, ATTRIBUTES)
    return {"prompts": title, "pictures": count, **cells, "s per picture": f"{seconds / count:.2f}"}


def _report(name: str, data: dict, facts: dict) -> str:
    settings = ", ".join(f"{key} {value!r}" for key, value in data["call"].items())
    return "\n".join(
        [
            f"# {name.replace('_', '-')} by the judge",
            "",
            machine_line(facts),
            f"{data['side']}x{data['side']} pixels, {data['steps']} steps, {settings}. "
            "Shares in percent with their standard error; attributes of objects count only when right for every "
            "object, places only where the prompt names one.",
            "",
            table(data["accuracy"]),
            "",
        ]
    )
