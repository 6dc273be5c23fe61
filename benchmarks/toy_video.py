"""toy-video by the judge: accuracy on seen and held-out prompts, and attention methods against dense, seed by seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.compare import Variant, comparison_rows
from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, parse_size, shares, split_counts, tell

# The comparison of this report; ``python -m benchmarks toy_methods`` has every method.
VARIANTS = (
    Variant("neighborhood", {"size": "7x8x8", "stride": "1x4x4"}, {"steps": "4:"}),
    Variant("neighborhood", {"size": "5x9x9"}, {"steps": "4:"}),
    Variant("radial", {"near": "decay", "sink": "false"}, {"steps": "4:", "layers": "1:"}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_video``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=200, help="prompts in all, half of them seen (default 200)")
    parser.add_argument("--pairs", type=int, default=8, help="prompts of the comparison with dense (default 8)")
    parser.add_argument("--size", default="25x128x128", help="frames x height x width of the accuracy table")
    parser.add_argument("--large", default="25x256x256", help="frames x height x width of the comparison")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation.toy import ClipRequest

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = parse_size(options.size)
    request = ClipRequest(frames, height, width, options.steps)
    accuracy = _accuracy_rows(pipeline, options.prompts, request)
    frames, height, width = parse_size(options.large)
    large = ClipRequest(frames, height, width, options.steps, batch=1)
    comparison = comparison_rows(pipeline, VARIANTS, options.pairs, large)
    facts = environment()
    data = {
        "environment": facts,
        "model": options.model,
        "size": options.size,
        "large": options.large,
        "steps": options.steps,
        "accuracy": accuracy,
        "comparison": comparison,
    }
    text = _report(data, facts)
    report("toy_video", data, text, options.output)
    return 0


def _accuracy_rows(pipeline, prompts: int, request) -> list[dict[str, object]]:
    from genkit.evaluation.toy import ATTRIBUTES, draw_prompts, generate_clips, judge_clips

    counts = split_counts(prompts)
    plans = [(title, split, counts[split], 1) for split, title in SPLITS]
    plans.append(("seen, two objects", "train", max(prompts // 8, 4), 2))
    rows = []
    for title, split, count, actors in plans:
        chosen = draw_prompts(split, count, seed=1234, actors=actors)
        texts = [text for _, text in chosen]
        clips, seconds = generate_clips(pipeline, texts, request, 1000, lambda d, t, name=title: tell(name, d, t))
        result, _ = judge_clips([scene for scene, _ in chosen], clips)
        row = {"prompts": title, "clips": count}
        row |= shares(result, ATTRIBUTES)
        rows.append(row | {"s per clip": f"{seconds / count:.2f}"})
    return rows


def _report(data: dict, facts: dict) -> str:
    return "\n".join(
        [
            "# toy-video by the judge",
            "",
            machine_line(facts),
            f"{data['steps']} UniPC steps, guidance 4. Shares in percent with their standard error.",
            "",
            f"## Accuracy at {data['size']}",
            "",
            table(data["accuracy"]),
            "",
            f"## Attention methods against dense at {data['large']}, same seeds",
            "",
            table(data["comparison"]),
            "",
        ]
    )
