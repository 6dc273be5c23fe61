"""Edits of pictures and clips with a known right answer, method by method: what is reached, what is kept, and the time.

The cases are drawn by the world from a seed of their own (``genkit.evaluation.edits``), and judged by arithmetic on
pixels. Rows of earlier calls stay in the report; a row that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.editing import sheets
from benchmarks.editing.store import Row, Store, measure
from benchmarks.environment import RESULTS, environment, machine_line, table, write_results

NAME = "editing"
_ATTRIBUTES = ("background", "count", "colour", "shape", "texture", "size", "motion", "place")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing``."""
    from benchmarks.editing.editors import EDITORS
    from genkit.world.edits import PICTURE_KINDS

    parser.add_argument("--model", default="toy-image")
    parser.add_argument("--kinds", nargs="+", choices=PICTURE_KINDS, help="default: all that the model has")
    parser.add_argument("--methods", nargs="+", choices=EDITORS, help="default: all that the model has")
    parser.add_argument("--cases", type=int, default=100, help="of every kind (default 100)")
    parser.add_argument("--first", type=int, default=0, help="first case, for tuning on other cases than the reported")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments for the methods' calls")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sheets", type=Path, help="folder for pictures before, after and truth of every row")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure row by row; the report is whole after every ten cases."""
    import torch

    from benchmarks.editing.editors import EDITORS, given, load
    from genkit.evaluation.edits import draw_edits
    from genkit.world.edits import CLIP_KINDS, PICTURE_KINDS

    if options.threads:
        torch.set_num_threads(options.threads)
    pipeline, clips = load(options.model, options.dtype)
    store = Store(options.output / f"{NAME}.json")
    store.facts = environment()
    arguments = given(options.set)
    for kind in options.kinds or (CLIP_KINDS if clips else PICTURE_KINDS):
        cases = draw_edits(kind, options.first + options.cases, clips)[options.first :]
        for name in options.methods or EDITORS:
            editor = EDITORS[name]
            if not editor.fits(pipeline):
                continue
            chosen = {**editor.settings(kind), **arguments} if editor.tuned else {}
            settings = {**chosen, "dtype": options.dtype, "first": options.first}
            row = store.row(options.model, kind, name, settings)
            edit = editor.make(pipeline, options.model, chosen)
            outputs = measure(row, cases, edit, editor.judge, lambda: _save(store, options.output))
            if options.sheets:
                path = options.sheets / f"{row.key.replace('/', '-')}.png"
                sheets.before_after_truth(cases, outputs, row, path)
        print(text(store), flush=True)
    return 0


def _save(store: Store, folder: Path) -> None:
    write_results(NAME, store.data(), text(store), folder)


def text(store: Store) -> str:
    """The report of all rows."""
    lines = [
        "# Edits with a known right answer",
        "",
        machine_line(store.facts),
        "The source is drawn by the world and given with its caption; the target prompt is the caption of the same "
        "picture after one change. Right: what was to change is as asked, and background, number of objects, every "
        "other attribute of every object and its place (within half its radius) are as in the true target. PSNR: of "
        "the pixels that should stay, against the source, in dB. Shares in percent with their standard error. "
        "Seconds: of the processor, per edit. First the bounds: the true target, the same through the model's "
        "autoencoder, and pictures that the model draws from the target prompt alone, of which the prompt is judged "
        "and nothing kept.",
        "",
    ]
    for model in dict.fromkeys(row.model for row in store.rows.values()):
        rows = [row for row in store.rows.values() if row.model == model]
        lines += [f"## {model}", "", *_tables(rows)]
    return "\n".join(lines)


def _tables(rows: Sequence[Row]) -> list[str]:
    from benchmarks.editing.editors import EDITORS

    order = {name: number for number, name in enumerate(EDITORS)}
    kinds = list(dict.fromkeys(row.kind for row in rows))
    methods = sorted({row.method for row in rows}, key=lambda name: order.get(name, len(order)))
    found = {(row.method, row.kind): row for row in rows if row.count}
    parts = [("Right: target reached and the rest kept", lambda row: _share(row, "right"))]
    if any("roughly right" in row.cases for row in rows):
        parts.append(("The same with the shape by forced choice", lambda row: _share(row, "roughly right")))
    parts += [
        ("Reached alone / kept alone", lambda row: " / ".join(_percent(row, name) for name in ("reached", "kept"))),
        ("PSNR of the pixels that should stay", lambda row: _mean(row, "psnr")),
        ("Seconds", lambda row: _mean(row, "cpu")),
    ]
    lines = []
    for title, cell in parts:
        body = []
        for method in methods:
            cells = {kind: cell(found[method, kind]) if (method, kind) in found else "" for kind in kinds}
            counts = sorted({found[method, kind].count for kind in kinds if (method, kind) in found})
            body.append({"method": method, "cases": "-".join(str(count) for count in counts), **cells})
        lines += [f"### {title}", "", table([line for line in body if any(line[kind] for kind in kinds)]), ""]
    return lines


def _share(row: Row, name: str) -> str:
    from genkit.evaluation.edits import share_of

    values = row.values(name)
    return share_of(values).percent if values else ""


def _percent(row: Row, name: str) -> str:
    values = row.values(name)
    return f"{100 * sum(values) / len(values):.0f}" if values else ""


def _mean(row: Row, name: str) -> str:
    from genkit.evaluation.edits import mean_of

    values = row.values(name)
    return str(mean_of(values)) if values else ""


def wrong_attributes(row: Row) -> dict[str, Any]:
    """Attribute -> cases in which it is wrong, for looking into a row."""
    return {name: row.values(name).count(0.0) for name in _ATTRIBUTES if name in row.cases}
