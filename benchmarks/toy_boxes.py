"""Motion by boxes on toy-video: tracks that training never showed, with the module, with it off, and without boxes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size, tell, trained_facts, trained_text
from genkit.reading import whole

SHOWN = 6
#: Seed of the cases; training draws its own.
SEED = 20_261
SPLITS = (("train", "seen"), ("held_out_pair", "held out"))


@dataclass(frozen=True)
class BoxRow:
    """One way to make the cases.

    Args:
        title: in the table.
        module: the trained motion module is on the model.
        boxes: it is told the boxes. half: in the prompt's half of guidance alone, else in both.
        subject: a picture shows the object, the prompt keeps silent; by reference attention inside the boxes.
        free: reference attention is the training-free form.
    """

    title: str
    module: bool = False
    boxes: bool = True
    half: bool = False
    subject: bool = False
    free: bool = False


ROWS = {
    "prompt": BoxRow("prompt alone", boxes=False),
    "boxes": BoxRow("boxes", module=True),
    "half": BoxRow("boxes, in the prompt's half of guidance alone", module=True, half=True),
    "subject": BoxRow("picture of the subject and boxes", module=True, subject=True),
    "subject-free": BoxRow("picture of the subject, training-free, and boxes", module=True, subject=True, free=True),
    "subject-alone": BoxRow("picture of the subject alone", boxes=False, subject=True),
    "subject-off": BoxRow("picture of the subject and boxes, module off", subject=True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_boxes``."""
    parser.add_argument("--model", default="toy-video", help="toy-video (default) or another Wan folder")
    parser.add_argument("--weights", type=Path, help="motion_boxes.safetensors (default: in the model's folder)")
    parser.add_argument(
        "--reference-weights", type=Path, help="of reference attention (default: in the model's folder)"
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=["prompt", "boxes", "half"])
    parser.add_argument(
        "--prompts", type=whole(8), default=24, help="cases per row, a quarter of new pairs (default 24)"
    )
    parser.add_argument("--size", default="17x128x128", help="frames x height x width (default 17x128x128)")
    parser.add_argument("--steps", type=whole(1), default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation.toy import ClipRequest
    from genkit.evaluation.toy_boxes import draw_box_cases
    from genkit.models import locate
    from genkit.pipelines.subject import WEIGHTS as REFERENCE
    from genkit.pipelines.tasks.boxes.given import WEIGHTS

    home = Path(str(locate(options.model).path))
    weights, reference = options.weights or home / WEIGHTS, options.reference_weights or home / REFERENCE
    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(*parse_size(options.size), options.steps)
    held_out = options.prompts // 4
    counts = {"train": options.prompts - held_out, "held_out_pair": held_out}
    cases = [case for name, _ in SPLITS for case in draw_box_cases(name, counts[name], request, SEED)]
    same = _off_is_the_model(pipeline, weights, cases[:1], request)
    rows, shown, plain = [], {}, []
    for name in options.rows:
        row = ROWS[name]
        scores, clips, seconds = _measure(pipeline, row, weights, reference, cases, request)
        shown[row.title] = clips[:SHOWN]
        rows += _cells(row, scores, cases, seconds / len(cases))
        plain += [{"row": name, "overlaps": [round(each.overlap, 4) for each in scores]}]
        print(rows[-len(_PARTS) :], flush=True)
    facts = environment()
    data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps}
    subject = any(ROWS[name].subject for name in options.rows)
    data |= {"weights": trained_facts(weights), "reference": trained_facts(reference) if subject else None}
    data |= {"off is the model": same, "rows": rows, "cases": plain}
    name = "toy_boxes_subject" if subject else "toy_boxes"
    report(name, data, _report(name, data, facts), options.output)
    pictures = [case.picture for case in cases[:SHOWN]] if subject else []
    _draw_sheet(cases[:SHOWN], shown, pictures, options.output / f"{name}.png")
    return 0


def _measure(pipeline: Any, row: BoxRow, weights: Path, reference: Path, cases: list, request: Any):
    """Scores of one way, its clips, and the seconds they took."""
    import genkit
    from genkit.attention.registry import trained
    from genkit.evaluation.toy_boxes import generate_box_cases, judge_box_cases
    from genkit.patching import Part

    parts, half = [], genkit.Schedule(branches=("cond",))
    if row.subject:
        shows = genkit.Reference() if row.free else trained("reference", reference)
        parts.append(Part(shows, half))
    if row.module:
        parts.append(Part(trained("motion_boxes", weights), half if row.half else None))
    patch = genkit.patch(pipeline, parts) if parts else None
    try:
        told = {"boxes": row.boxes, "subject": row.subject, "progress": lambda d, t: tell(row.title, d, t)}
        clips, seconds = generate_box_cases(pipeline, cases, request, 3000, patch, **told)
    finally:
        if patch is not None:
            patch.remove()
    return judge_box_cases(cases, clips), clips, seconds


def _off_is_the_model(pipeline: Any, weights: Path, cases: list, request: Any) -> bool:
    """Whether boxes with the module off make the very frames of the prompt alone; four steps of one case."""
    from dataclasses import replace

    import genkit
    from genkit.attention.registry import trained
    from genkit.evaluation.toy_boxes import generate_box_cases

    short = replace(request, steps=4)
    plain, _ = generate_box_cases(pipeline, cases, short, 3000)
    with genkit.patch(pipeline, replace(trained("motion_boxes", weights), strength=0.0)) as patch:
        off, _ = generate_box_cases(pipeline, cases, short, 3000, patch)
    return bool(np.array_equal(plain, off))


#: What is counted together: all, by the kind of path, and colour-shape pairs that no training shows.
_PARTS = (
    ("all", lambda case, number, seen: True),
    ("straight lines", lambda case, number, seen: case.kind == "keys"),
    ("arcs, never trained", lambda case, number, seen: case.kind == "arc"),
    ("new colour-shape pair", lambda case, number, seen: number >= seen),
)


def _cells(row: BoxRow, scores: list, cases: list, seconds: float) -> list[dict[str, Any]]:
    from genkit.evaluation.shares import share_of
    from genkit.evaluation.toy_boxes import ATTRIBUTES

    seen, found = len(cases) - len(cases) // 4, []
    for title, belongs in _PARTS:
        part = [
            score for number, (case, score) in enumerate(zip(cases, scores, strict=True)) if belongs(case, number, seen)
        ]
        cells = {"way": row.title, "tracks": title, "clips": len(part)}
        cells |= {"IoU": _mean([score.overlap for score in part])}
        cells |= {"distance": _mean([score.distance for score in part if np.isfinite(score.distance)])}
        cells |= {name: share_of([score.right[name] for score in part]).percent for name in ATTRIBUTES}
        found.append(cells | {"s per clip": f"{seconds:.1f}"})
    return found


def _mean(values: list[float]) -> str:
    """Mean and standard error; nothing of no values."""
    from genkit.evaluation.shares import mean_of

    found = mean_of(values) if values else None
    return "" if found is None else f"{found.mean:.3f} ± {found.error:.3f}"


def _draw_sheet(cases: list, shown: dict[str, Any], pictures: list, path: Path) -> None:
    """First, middle and last frame of the first cases with the asked boxes drawn in, a row per way; above them the
    pictures of the subjects, where there are some."""
    from PIL import Image

    from genkit.evaluation.sheet import contact_sheet, save_sheet

    rows = {}
    if pictures:
        height, width = next(iter(shown.values())).shape[2:4]
        large = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures]
        blank = np.full_like(large[0], 255)
        rows["the subject"] = np.stack([tile for picture in large for tile in (picture, blank, blank)])
    for way, clips in shown.items():
        places = [0, clips.shape[1] // 2, clips.shape[1] - 1]
        frames = [outlined(clip[i], case.boxes[i]) for case, clip in zip(cases, clips, strict=True) for i in places]
        rows[way] = np.stack(frames)
    save_sheet(contact_sheet(list(rows.values()), list(rows), columns=1, frames=3 * len(cases)), path)


def outlined(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A frame with a box drawn in, in the colour opposite to what is below it."""
    height, width = frame.shape[:2]
    left, top, right, bottom = (np.asarray(box) * [width, height, width, height]).round().astype(int)
    right, bottom = min(right, width - 1), min(bottom, height - 1)
    line = np.zeros(frame.shape[:2], dtype=bool)
    line[top : bottom + 1, [left, right]] = True
    line[[top, bottom], left : right + 1] = True
    return np.where(line[..., None], 255 - frame, frame)


def _report(name: str, data: dict, facts: dict) -> str:
    same = "are" if data["off is the model"] else "are NOT"
    subject = (
        f" With a picture of the subject, 96x96, it stands on another background and the prompt does not name the "
        f"object. Reference attention by {trained_text(data['reference']).removeprefix('Weights: ')}"
        if data["reference"]
        else ""
    )
    return "\n".join(
        [
            f"# Motion by boxes on {data['model']}",
            "",
            machine_line(facts),
            f"{data['size']}, {data['steps']} steps of the model's own sampler, guidance 4, same seeds in every row; "
            "tracks are new. Prompts say object, direction of the track and background. `IoU`: of the box of the object"
            " found by the judge and the asked one, mean over frames (0 without an object) and clips; 0.964 for what "
            "the world draws. `distance`: between the middles, in shares of the diagonal. `object`: colour, nearest "
            f"shape as asked; `shape`: the outline is clear besides. {trained_text(data['weights'])}{subject}",
            f"With boxes and the module off (strength 0) the frames {same} those of the prompt alone, bit for bit.",
            "",
            table(data["rows"]),
            "",
            "The first cases: first, middle and last frame, the asked boxes drawn in:",
            "",
            f"![samples]({name}.png)",
            "",
        ]
    )
