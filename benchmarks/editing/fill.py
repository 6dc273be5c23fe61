"""Parts made anew: the object appears in the mask, the rest stays bit for bit. PAIntA and RASG one by one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.editing import sheets
from benchmarks.editing.report import add_common, begun, mean, measured, report, share
from benchmarks.editing.store import Store

NAME = "editing_inpaint"
#: Kinds of cases, of the world's and by what the prompt says: the object, or all that is to be seen.
KINDS = ("fill", "swap")
_WHOLE = ", whole prompt"
_TOLD = (
    "fill: an empty place of a picture; swap: one with another object in it; with none or one object outside the mask. "
    "The prompt names the object and the background; a whole prompt is the caption of everything. Right: one object "
    "with the asked colour, shape and texture has its centre in the mask, nothing else came or went, and every pixel "
    "outside is the picture's. Shares in percent with their standard error. Seconds: of the processor, per picture."
)
_PARTS = (
    ("Right", share("right")),
    ("The object appears in the mask", share("appears")),
    ("Colour", share("colour")),
    ("Shape", share("shape")),
    ("Texture", share("texture")),
    ("Outside untouched, bit for bit", share("outside")),
    ("Seconds", mean("cpu")),
)


@dataclass(frozen=True)
class Line:
    """One line of the tables.

    Args:
        settings: of the call; None for the true target.
        whole: the prompt names everything.
    """

    settings: dict[str, Any] | None
    whole: bool = False


#: Name -> line.
LINES: dict[str, Line] = {
    "true target": Line(None),
    "blending alone": Line({"painta": 0.0, "rasg": 0.0}),
    "PAIntA": Line({"painta": 0.5, "rasg": 0.0}),
    "RASG": Line({"painta": 0.0, "rasg": 0.01}),
    "PAIntA and RASG": Line({"painta": 0.5, "rasg": 0.01}),
    "steps twice": Line({"painta": 0.0, "rasg": 0.0, "resample": 2}),
    "steps twice, PAIntA": Line({"painta": 0.5, "rasg": 0.0, "resample": 2}),
    f"blending alone{_WHOLE}": Line({"painta": 0.0, "rasg": 0.0}, True),
    f"PAIntA and RASG{_WHOLE}": Line({"painta": 0.5, "rasg": 0.01}, True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing_inpaint``."""
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=LINES, default=list(LINES))
    add_common(parser, 100)


def run(options: argparse.Namespace) -> int:
    """Measure row by row; the report is whole after every ten cases."""
    from benchmarks.editing.editors import given
    from genkit.evaluation.edits import draw_fills
    from genkit.world.edits import judge_fill

    pipeline, _, store = begun(options, NAME)
    for kind in options.kinds:
        cases = draw_fills(kind, options.first + options.cases)[options.first :]
        for name in options.methods:
            line = LINES[name]
            chosen = {} if line.settings is None else {**_usual(options.model), **line.settings, **given(options.set)}
            runner, method = _runner(pipeline, line, chosen), (kind, name, chosen)
            measured(options, NAME, store, text, method, cases, runner, judge_fill, sheets.before_after_truth)
        print(text(store), flush=True)
    return 0


def text(store: Store) -> str:
    """The report of all rows."""
    return report("Parts made anew", store, _TOLD, _PARTS, list(LINES))


def _usual(model: str) -> dict[str, Any]:
    """Steps, guidance, fresh noise and sizes of the model's own file, as ``genkit inpaint`` takes them."""
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar

    sidecar = read_sidecar(locate(model).path)
    names = {
        "steps": "num_inference_steps",
        "guidance_scale": "guidance_scale",
        "max_sequence_length": "max_sequence_length",
    }
    found = {call: sidecar.defaults[name] for name, call in names.items() if name in sidecar.defaults}
    if "eta" in sidecar.call:
        found["eta"] = sidecar.call["eta"]
    limits = sidecar.limits
    if "min_height" in limits and "min_width" in limits:
        found["least"] = [limits["min_height"], limits["min_width"]]
    if "multiple" in limits:
        found["multiple"] = limits["multiple"]
    return found


def _runner(pipeline: Any, line: Line, settings: dict[str, Any]) -> Any:
    if line.settings is None:
        return lambda case, number: case.target
    import torch

    from benchmarks.editing.editors import NOISE
    from genkit.editing.hd_painter import HDPainterPipeline

    painter = HDPainterPipeline.from_pipe(pipeline)

    def run(case: Any, number: int) -> np.ndarray:
        prompt = case.whole_prompt if line.whole else case.prompt
        generator = torch.Generator().manual_seed(NOISE + number)
        return painter(case.source, case.mask, prompt, generator=generator, **settings).frames[0]

    return run
