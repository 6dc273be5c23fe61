"""Forty prompts that people type first: which of them toy-video and toy-image get right."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks first_prompts``."""
    parser.add_argument("--video", default="toy-video", help="model of the clips; empty for none")
    parser.add_argument("--image", default="toy-image", help="model of the pictures; empty for none")
    parser.add_argument("--seeds", type=int, default=4, help="samples per prompt, seed 0 and on (default 4)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    facts = environment()
    rows = []
    for model, measure in ((options.video, clip_answers), (options.image, picture_answers)):
        if model:
            rows += measure(model, options.seeds, options.steps)
    shares = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row["right"] / options.seeds for row in rows if row["model"] == model]
        mean = sum(own) / len(own)
        # The prompts are the sample: seeds of one prompt are alike.
        error = (sum((value - mean) ** 2 for value in own) / max(len(own) - 1, 1) / len(own)) ** 0.5
        shares.append({"model": model, "prompts": len(own), "right": f"{100 * mean:.0f} ± {100 * error:.0f}"})
    text = "\n".join(
        [
            "# The first prompts people type",
            "",
            machine_line(facts),
            f"{options.steps} steps, seeds 0 to {options.seeds - 1}. Right: everything that the prompt says, in "
            "percent with the standard error over prompts.",
            "",
            table(shares),
            "",
            table([{**row, "right": f"{row['right']} of {options.seeds}"} for row in rows]),
            "",
        ]
    )
    report("first_prompts", {"environment": facts, "shares": shares, "prompts": rows}, text, options.output)
    return 0


def clip_answers(model: str, seeds: int, steps: int) -> list[dict[str, object]]:
    """Rows (model, prompt, right) of the clips."""
    import genkit
    from genkit.evaluation.first_prompts import CLIP_PROMPTS
    from genkit.evaluation.toy import ClipRequest, generate_clips

    pipeline = genkit.load(model)
    request = ClipRequest(steps=steps)
    return _answers(
        pipeline, model, CLIP_PROMPTS, seeds, lambda texts, seed: generate_clips(pipeline, texts, request, seed)[0]
    )


def picture_answers(model: str, seeds: int, steps: int) -> list[dict[str, object]]:
    """Rows (model, prompt, right) of the pictures."""
    import genkit
    from genkit.evaluation.first_prompts import PICTURE_PROMPTS
    from genkit.evaluation.toy_picture import PictureRequest, generate_pictures

    pipeline = genkit.load(model)
    request = PictureRequest.of_model(model, 128, 128, steps)
    return _answers(
        pipeline,
        model,
        PICTURE_PROMPTS,
        seeds,
        lambda texts, seed: generate_pictures(pipeline, texts, request, seed)[0],
    )


def _answers(pipeline, model: str, prompts, seeds: int, generate) -> list[dict[str, object]]:
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for done, prompt in enumerate(prompts, 1):
        samples = generate([prompt.text] * seeds, 0)
        rows.append({"model": model, "prompt": prompt.text, "right": sum(map(prompt.right, samples))})
        tell(model, done, len(prompts))
    return rows
