"""A content in the manner of another picture: the content's shape and place are kept, the style is taken."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.editing import sheets
from benchmarks.editing.report import add_common, begun, mean, measured, report, share
from benchmarks.editing.store import Store

NAME = "editing_style"
KIND = "style"
_TOLD = (
    "Content and style differ in shape, colour, texture and background. Content: one object with the content's outline "
    "at its place, whatever its colours. Way: share of the distance between the content's and the style's statistics "
    "that is gone (colours and their changes from pixel to pixel, sliced Wasserstein distance; the true target, the "
    "content's shape drawn with the style's colour, texture and background, goes nearly all of it). Right: content "
    "kept and half of the way at least. Background: the style's. Shares in percent with their standard error. Seconds: "
    "of the processor, per picture."
)
_PARTS = (
    ("Right: content kept, half of the way to the style", share("right")),
    ("Content kept", share("content")),
    ("Way to the style", mean("moved", 2)),
    ("Background of the style", share("background")),
    ("Seconds", mean("cpu")),
)
Run = Callable[[Any, int], np.ndarray]


def _truth(pipeline: Any, settings: dict[str, Any]) -> Run:
    return lambda case, number: case.target


def _content(pipeline: Any, settings: dict[str, Any]) -> Run:
    return lambda case, number: case.content


def _attenst(pipeline: Any, settings: dict[str, Any]) -> Run:
    from genkit.editing.attenst import AttenSTPipeline

    painter = AttenSTPipeline.from_pipe(pipeline)
    settings = dict(settings)
    prompts = settings.pop("prompts", False)

    def run(case: Any, number: int) -> np.ndarray:
        told = {}
        if prompts:
            told = {
                "prompt": case.target_prompt,
                "style_prompt": case.style_prompt,
                "source_prompt": case.content_prompt,
            }
        return painter(case.content, case.style, **told, **settings).frames[0]

    return run


#: Name -> (what makes its runner, settings).
LINES: dict[str, tuple[Callable[[Any, dict[str, Any]], Run], dict[str, Any]]] = {
    "true target": (_truth, {}),
    "content as it is": (_content, {}),
    "AttenST": (_attenst, {}),
    "AttenST, with prompts": (_attenst, {"prompts": True}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing_style``."""
    parser.add_argument("--methods", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--size", type=int, default=128, help="height and width of the pictures (default 128)")
    add_common(parser, 50)


def run(options: argparse.Namespace) -> int:
    """Measure row by row; the report is whole after every ten cases."""
    from benchmarks.editing.editors import given
    from genkit.evaluation.edits import draw_style_pairs
    from genkit.world.edits import judge_style

    pipeline, _, store = begun(options, NAME)
    cases = draw_style_pairs(options.first + options.cases, side=options.size)[options.first :]
    for name in options.methods:
        make, settings = LINES[name]
        chosen = {**settings, **(given(options.set) if make is _attenst else {})}
        made, method = make(pipeline, chosen), (KIND, name, {**chosen, "size": options.size})
        measured(options, NAME, store, text, method, cases, made, judge_style, sheets.with_style)
    print(text(store), flush=True)
    return 0


def text(store: Store) -> str:
    """The report of all rows."""
    return report("Styles", store, _TOLD, _PARTS, list(LINES))
