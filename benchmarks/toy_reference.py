"""Reference attention on toy-video or toy-image: prompts that keep silent about the object, pictures that show it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size, shares, tell, trained_facts, trained_text

SHOWN = 8
SPLITS = (("train", "seen"), ("held_out_pair", "held out: new colour-shape pair"))


@dataclass(frozen=True)
class ReferenceRow:
    """One way to follow a reference.

    Args:
        title: in the table.
        trained: by trained weights; False = the training-free form, None = no reference.
        half: only the prompt's half of guidance reads the reference.
        boxes: whether the patch is told where the object is.
    """

    title: str
    trained: bool | None
    half: bool = False
    boxes: bool = False


ROWS = (
    ReferenceRow("no reference", None),
    ReferenceRow("training-free", False),
    ReferenceRow("training-free, prompt half only", False, True),
    ReferenceRow("trained", True),
    ReferenceRow("trained, prompt half only", True, True),
    ReferenceRow("trained, boxes told", True, False, True),
    ReferenceRow("trained, boxes told, prompt half only", True, True, True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_reference``."""
    parser.add_argument("--model", default="toy-video", help="toy-video (default), toy-image, or one of their classes")
    parser.add_argument("--weights", type=Path, help="reference.safetensors of scripts/train_patch.py reference")
    parser.add_argument("--prompts", type=int, default=32, help="cases per row, three quarters seen (default 32)")
    parser.add_argument("--size", help="frames x height x width (default 17x128x128), of pictures 1x128x128")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=1.0, help="of the training-free form (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation.toy_reference import draw_cases
    from genkit.pipelines.kinds import IMAGE, kind_of

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    picture = kind_of(type(pipeline)) == IMAGE
    request = _request(options, picture)
    held_out = options.prompts // 4
    counts = {"train": options.prompts - held_out, "held_out_pair": held_out}
    cases = {name: draw_cases(name, counts[name], request, seed=4321) for name, _ in SPLITS if counts[name]}
    rows, shown = [], {}
    for row in ROWS:
        if row.trained and options.weights is None:
            continue
        for split, title in SPLITS:
            if split in cases:
                cells, samples = _measure(pipeline, row, cases[split], request, options)
                rows.append({"way": row.title, "prompts": title} | cells)
                shown.setdefault(row.title, samples[:SHOWN])
    facts = environment()
    size = f"{request.height}x{request.width}" if picture else f"{request.num_frames}x{request.height}x{request.width}"
    data = {"environment": facts, "model": options.model, "size": size, "steps": options.steps}
    data |= {"strength": options.strength, "weights": trained_facts(options.weights), "rows": rows}
    name = "toy_reference_picture" if picture else "toy_reference"
    report(name, data, _report(name, data, facts, picture), options.output)
    _draw_sheet(next(iter(cases.values())), shown, options.output / f"{name}.png")
    return 0


def _request(options: argparse.Namespace, picture: bool) -> Any:
    """Size and sampling: guidance and the like as the model's sidecar has them for pictures."""
    from genkit.evaluation.toy import ClipRequest
    from genkit.evaluation.toy_picture import PictureRequest

    if not picture:
        return ClipRequest(*parse_size(options.size or "17x128x128"), options.steps)
    frames, height, width = parse_size(options.size or "1x128x128")
    if frames != 1:
        raise SystemExit(f"--size: got {frames} frames, allowed: 1 for {options.model}, which makes pictures")
    return PictureRequest.of_model(options.model, height, width, options.steps)


def _measure(
    pipeline: Any, row: ReferenceRow, cases: list, request: Any, options: argparse.Namespace
) -> tuple[dict, np.ndarray]:
    """Cells of one row, and what was made."""
    import genkit
    from genkit.attention.reference.store import References
    from genkit.attention.registry import trained
    from genkit.evaluation.toy_picture import PictureRequest
    from genkit.evaluation.toy_reference import attributes_of, generate_cases, judge_cases

    patch = None
    if row.trained is not None:
        free = genkit.Reference(strength=options.strength)
        method = trained("reference", options.weights) if row.trained else free
        if isinstance(request, PictureRequest):
            patch = genkit.patch(pipeline, method)
            # Both halves of guidance are one call, the negative one first.
            References.of(patch.cache).set_parts((0, 1) if row.half else ())
        else:
            patch = genkit.patch(pipeline, method, schedule=genkit.Schedule(branches="cond" if row.half else None))
    try:
        samples, seconds = generate_cases(
            pipeline, cases, request, 2000, patch, row.boxes, lambda d, t: tell(row.title, d, t)
        )
    finally:
        if patch is not None:
            patch.remove()
    cells = {"samples": len(cases)} | shares(judge_cases(cases, samples), attributes_of(cases[0]))
    return cells | {"s per sample": f"{seconds / len(cases):.2f}"}, samples


def _draw_sheet(cases: list, shown: dict[str, Any], path: Path) -> None:
    """The pictures of the first cases, and below them what every way made of them; of clips the last frame."""
    from PIL import Image

    from genkit.evaluation.sheet import contact_sheet, save_sheet

    stills = {
        way: np.stack([sample if sample.ndim == 3 else sample[-1] for sample in samples])
        for way, samples in shown.items()
    }
    height, width = next(iter(stills.values())).shape[1:3]
    pictures = [np.asarray(Image.fromarray(case.picture).resize((width, height))) for case in cases[:SHOWN]]
    rows = {"the reference": np.stack(pictures)} | stills
    save_sheet(contact_sheet(list(rows.values()), list(rows), columns=1, frames=len(pictures)), path)


def _report(name: str, data: dict, facts: dict, picture: bool) -> str:
    told = (
        "The prompt says the background and sometimes the place, the picture shows the object elsewhere on another "
        "background. `reference`: colour and shape are the picture's."
        if picture
        else "The prompt says motion and background, the picture shows the object elsewhere on another background. "
        "`reference`: colour and nearest shape are the picture's; `shape`: the outline is clear besides."
    )
    return "\n".join(
        [
            f"# Reference attention on {data['model']}",
            "",
            machine_line(facts),
            f"{data['size']}, {data['steps']} steps of the model's own sampler, guidance 4, the same seeds for every "
            f"row. {told} Shares in percent with their standard error. {trained_text(data['weights'])}",
            "",
            table(data["rows"]),
            "",
            "The first seen cases (of clips the last frame):",
            "",
            f"![samples]({name}.png)",
            "",
        ]
    )
