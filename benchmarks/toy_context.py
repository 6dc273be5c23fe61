"""Cross-modal context attention on toy-av: does what is heard fit better to what is seen?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from benchmarks.toy_av import sound_row
from benchmarks.toy_common import parse_size, tell, trained_facts, trained_text
from genkit.world.listen import match_events

#: Key of a row's matched, seen and heard events by clip; not in the table.
COUNTS = "counts"


PLAIN, GUIDED = "the model itself", "the model itself, modality guidance"
WINDOWS = {"frames": 3, "whole_layers": 3}


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Args:
        name: of the row, for ``--rows``.
        title: in the table.
        method: from the weights file to the method; None = not patched.
        trained: whether it needs the weights file.
        guided: with guidance against the pass in which the modalities are apart (or read context tokens).
    """

    name: str
    title: str
    method: Callable[[Path | None], Any] | None = None
    trained: bool = False
    guided: bool = False


def _windows(settings: dict[str, int]) -> Callable[[Path | None], Any]:
    def build(weights: Path | None) -> Any:
        import genkit

        return genkit.CrossModalContext(**settings)

    return build


def _trained(weights: Path | None) -> Any:
    from genkit.attention.registry import trained

    assert weights is not None, "rows with trained tokens are left out without a file"
    return trained("cross_modal_context", weights)


WAYS = (
    Way("plain", PLAIN),
    Way("plain-guided", GUIDED, guided=True),
    Way("default", "training-free, the method's defaults", _windows({})),
    Way("windows", "training-free, windows of 3 frames from layer 3 on", _windows(WINDOWS)),
    Way("windows-guided", "the same, modality guidance", _windows(WINDOWS), guided=True),
    Way("trained", "trained", _trained, trained=True),
    Way("trained-guided", "trained, guidance against context tokens", _trained, trained=True, guided=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_context``."""
    names = [way.name for way in WAYS]
    parser.add_argument("--model", default="toy-av")
    parser.add_argument("--weights", type=Path, help="file of scripts/train_patch.py cross_modal_context")
    parser.add_argument("--prompts", type=int, default=48, help="seen prompts with one object (default 48)")
    parser.add_argument("--size", default="25x128x128", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=3.0, help="of modality guidance (default 3)")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="rows to measure (default all)")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of --output that were measured with the same settings"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report, which is whole after every row."""
    import genkit
    from genkit.evaluation import toy_av as judged

    frames, height, width = parse_size(options.size)
    asked = {"model": options.model, "size": options.size, "steps": options.steps, "prompts": options.prompts}
    asked |= {"scale": options.scale, "weights": trained_facts(options.weights)}
    rows = _known(options.output / "toy_context.json", asked) if options.resume else {}
    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = judged.SoundRequest.of_model(
        options.model, num_frames=frames, height=height, width=width, steps=options.steps
    )
    bias = judged.own_bias(request)
    prompts = judged.draw_sound_prompts("train", options.prompts, 4321)
    for way in WAYS:
        if way.name not in options.rows or way.title in rows or (way.trained and options.weights is None):
            continue
        rows[way.title] = _measure(pipeline, way, prompts, request, bias, options)
        facts = environment()
        found = [rows[each.title] for each in WAYS if each.title in rows]
        data = {"environment": facts, **asked, "rows": [compared(row, rows) for row in found]}
        text = _report(data, facts)
        write_results("toy_context", data, text, options.output)
        print(text)
    return 0


def _known(path: Path, asked: dict) -> dict[str, dict]:
    """Title -> row of an earlier run with the same settings. Rows without trained tokens fit any weights file."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    fixed = [name for name in asked if name != "weights"]
    if any(earlier.get(name) != asked[name] for name in fixed):
        return {}
    fitting = {way.title for way in WAYS if not way.trained or earlier.get("weights") == asked["weights"]}
    return {row["clips"]: row for row in earlier["rows"] if row["clips"] in fitting and COUNTS in row}


def _measure(pipeline: Any, way: Way, prompts: list, request: Any, bias: float, options: argparse.Namespace) -> dict:
    """One row, the same prompts and seeds as every other."""
    import genkit
    from genkit.evaluation import toy_av as judged

    scale = options.scale if way.guided else 1.0
    request = replace(request, call={**request.call, "modality_scale": scale, "audio_modality_scale": scale})
    patch = None if way.method is None else genkit.patch(pipeline, way.method(options.weights))
    try:
        clips, seconds = judged.generate_sound_clips(
            pipeline, [text for _, text in prompts], request, 3000, lambda done, total: tell(way.title, done, total)
        )
        density = None if patch is None else patch.report().density
    finally:
        if patch is not None:
            patch.remove()
    row = sound_row(way.title, [scene for scene, _ in prompts], clips, request, bias, seconds)
    row["pairs"] = "100%" if density is None else f"{100 * density.computed:.0f}% ({100 * density.executed:.0f}%)"
    counts = []
    for clip in clips:
        seen, heard = judged.seen_and_heard(clip, request.fps)
        counts.append([len(match_events(seen, heard)), len(seen), len(heard)])
    return row | {COUNTS: counts}


def compared(row: dict, rows: dict[str, dict], draws: int = 2000) -> dict:
    """A row with its event F1 less that of the model itself on the same clips, and the error over drawn clips."""
    if PLAIN not in rows or row["clips"] == PLAIN:
        return row
    own, plain = (np.array(each[COUNTS]) for each in (row, rows[PLAIN]))
    picks = np.random.default_rng(0).integers(len(own), size=(draws, len(own)))
    apart = _f1(own[picks].sum(1)) - _f1(plain[picks].sum(1))
    here = float(_f1(own.sum(0)) - _f1(plain.sum(0)))
    return row | {"F1 less the model's": f"{here:+.3f} ± {apart.std():.3f}"}


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of (..., 3) matched, seen and heard events."""
    return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)


def _report(data: dict, facts: dict) -> str:
    return "\n".join(
        [
            "# Cross-modal context attention on toy-av",
            "",
            machine_line(facts),
            f"{data['size']}, {data['steps']} steps, seen prompts with one object, the same seeds for every row. "
            f"Guidance {data['scale']:g} means `modality_scale` and `audio_modality_scale`. Columns as in "
            "toy_av.md; the difference of F1 is over the same clips, its error over clips drawn with replacement. "
            "Pairs: share of the cross-modal query-key pairs that the windows ask for, and in brackets that of the "
            "visited blocks. " + trained_text(data["weights"]),
            "",
            table([{name: cell for name, cell in row.items() if name != COUNTS} for row in data["rows"]]),
            "",
        ]
    )
