"""Edits of pictures and clips with a known right answer, method by method: what is reached, what is kept, and the time.

The cases are drawn by the world from a seed of their own (``genkit.evaluation.edits``), and judged by arithmetic on
pixels. Rows of earlier calls stay in the report; a row that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse

from benchmarks.editing import sheets
from benchmarks.editing.report import add_common, begun, mean, measured, percents, report, share
from benchmarks.editing.store import Store

NAME = "editing"
_TOLD = (
    "The source is drawn by the world and given with its caption; the target prompt is the caption of the same picture "
    "after one change. Right: what was to change is as asked, and background, number of objects, every other attribute "
    "of every object and its place (within half its radius) are as in the true target. PSNR: of the pixels that should "
    "stay, against the source, in dB. Shares in percent with their standard error. Seconds: of the processor, per "
    "edit. First the bounds: the true target, the same through the model's autoencoder, and pictures that the model "
    "draws from the target prompt alone, of which the prompt is judged and nothing kept. With presets, edits of the "
    "background and added objects are told the things on the source to keep (--keep-words), colour "
    "and shape; removals are told nothing. Cells are empty where a method was not measured: vimaedit takes 6 s a case, "
    "prompt-to-prompt adds nothing, and without presets one setting does not fit another background."
)
_PARTS = (
    ("Right: target reached and the rest kept", share("right")),
    ("The same with the shape by forced choice", share("roughly right")),
    ("Reached alone / kept alone", percents("reached", "kept")),
    ("PSNR of the pixels that should stay", mean("psnr")),
    ("Seconds", mean("cpu")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing``."""
    from benchmarks.editing.editors import EDITORS
    from genkit.world.edits import PICTURE_KINDS

    parser.add_argument("--kinds", nargs="+", choices=PICTURE_KINDS, help="default: all that the model has")
    parser.add_argument("--methods", nargs="+", choices=EDITORS, help="default: all that the model has")
    add_common(parser, 100)


def run(options: argparse.Namespace) -> int:
    """Measure row by row; the report is whole after every ten cases."""
    from benchmarks.editing.editors import EDITORS, given
    from genkit.evaluation.edits import draw_edits
    from genkit.world.edits import CLIP_KINDS, PICTURE_KINDS

    pipeline, clips, store = begun(options, NAME)
    arguments = given(options.set)
    for kind in options.kinds or (CLIP_KINDS if clips else PICTURE_KINDS):
        cases = draw_edits(kind, options.first + options.cases, clips)[options.first :]
        for name in options.methods or EDITORS:
            editor = EDITORS[name]
            if not editor.fits(pipeline):
                continue
            chosen = editor.settings(kind, pipeline, options.model)
            chosen |= arguments if editor.method else {}
            edit = editor.make(pipeline, options.model, chosen)
            method = (kind, name, chosen)
            measured(options, NAME, store, text, method, cases, edit, editor.judge, sheets.before_after_truth)
        print(text(store), flush=True)
    return 0


def text(store: Store) -> str:
    """The report of all rows."""
    from benchmarks.editing.editors import EDITORS

    return report("Edits with a known right answer", store, _TOLD, _PARTS, list(EDITORS))
