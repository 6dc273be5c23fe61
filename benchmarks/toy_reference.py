"""Reference attention on toy-video: prompts that keep silent about the object, pictures that show it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size, shares, tell, trained_facts, trained_text

SPLITS = (("train", "seen"), ("held_out_pair", "held out: new colour-shape pair"))


@dataclass(frozen=True)
class ReferenceRow:
    """One way to follow a reference.

    Args:
        title: in the table.
        trained: by trained weights; False = the training-free form, None = no reference.
        branches: half of guidance that reads the reference; None = both.
        boxes: whether the patch is told where the object is.
    """

    title: str
    trained: bool | None
    branches: str | None = None
    boxes: bool = False


ROWS = (
    ReferenceRow("no reference", None),
    ReferenceRow("training-free", False),
    ReferenceRow("training-free, prompt half only", False, "cond"),
    ReferenceRow("trained", True),
    ReferenceRow("trained, prompt half only", True, "cond"),
    ReferenceRow("trained, boxes told", True, None, True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_reference``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--weights", type=Path, help="reference.safetensors of scripts/train_patch.py reference")
    parser.add_argument("--prompts", type=int, default=32, help="cases per row, three quarters seen (default 32)")
    parser.add_argument("--size", default="17x128x128", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=1.0, help="of the training-free form (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation.toy import ClipRequest
    from genkit.evaluation.toy_reference import draw_cases

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(*parse_size(options.size), options.steps)
    held_out = options.prompts // 4
    counts = {"train": options.prompts - held_out, "held_out_pair": held_out}
    cases = {name: draw_cases(name, counts[name], request, seed=4321) for name, _ in SPLITS if counts[name]}
    rows = []
    for row in ROWS:
        if row.trained and options.weights is None:
            continue
        for split, title in SPLITS:
            if split in cases:
                cells = _measure(pipeline, row, cases[split], request, options)
                rows.append({"way": row.title, "prompts": title} | cells)
    facts = environment()
    data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps}
    data |= {"strength": options.strength, "weights": trained_facts(options.weights), "rows": rows}
    text = _report(data, facts)
    report("toy_reference", data, text, options.output)
    return 0


def _measure(pipeline: Any, row: ReferenceRow, cases: list, request: Any, options: argparse.Namespace) -> dict:
    """Cells of one row."""
    import genkit
    from genkit.attention.registry import trained
    from genkit.evaluation.toy_reference import ATTRIBUTES, generate_cases, judge_cases

    patch = None
    if row.trained is not None:
        free = genkit.Reference(strength=options.strength)
        method = trained("reference", options.weights) if row.trained else free
        patch = genkit.patch(pipeline, method, schedule=genkit.Schedule(branches=row.branches))
    try:
        clips, seconds = generate_cases(
            pipeline, cases, request, 2000, patch, row.boxes, lambda d, t: tell(row.title, d, t)
        )
    finally:
        if patch is not None:
            patch.remove()
    cells = {"clips": len(cases)} | shares(judge_cases(cases, clips), ATTRIBUTES)
    return cells | {"s per clip": f"{seconds / len(cases):.2f}"}


def _report(data: dict, facts: dict) -> str:
    return "\n".join(
        [
            "# Reference attention on toy-video",
            "",
            machine_line(facts),
            f"{data['size']}, {data['steps']} UniPC steps, guidance 4, the same seeds for every row. The prompt says "
            "motion and background, the picture shows the object elsewhere on another background. `reference`: colour "
            "and nearest shape are the picture's; `shape`: the outline is clear besides. Shares in percent with their "
            f"standard error. {trained_text(data['weights'])}",
            "",
            table(data["rows"]),
            "",
        ]
    )
