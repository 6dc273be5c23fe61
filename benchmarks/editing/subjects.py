"""The same subjects in four pictures: IR-Diffusion against pictures that are made one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.editing.report import add_common, begun, mean, measured, report
from benchmarks.editing.store import Row, Store

NAME = "editing_consistent"
KINDS = ("1 subject", "2 subjects")
_TOLD = (
    "Four prompts that name the same subjects on four backgrounds and leave texture and size open, of half of the "
    "single subjects the colour, too. Same: pairs of the four pictures whose subjects agree in colour, shape, texture "
    "and size, as read from the pixels. As asked: pictures with background, number of objects and what is named of "
    "them as prompted. Shares of 1 with their standard error over sets. One noise: the four pictures start from the "
    "same noise, as those of IR-Diffusion do. Seconds: of the processor, per set of four."
)
_PARTS = (
    ("Same subject: pairs alike in all", mean("same", 2)),
    ("Colour", mean("colour", 2)),
    ("Texture", mean("texture", 2)),
    ("Size", mean("size", 2)),
    ("Pictures as asked", mean("asked", 2)),
    ("Seconds", mean("cpu")),
)
Run = Callable[[Any, int], np.ndarray]


def _independent(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    from benchmarks.editing.editors import NOISE
    from genkit.evaluation.toy_picture import PictureRequest, generate_pictures

    request = PictureRequest.of_model(model, 128, 128, settings["num_inference_steps"])

    def run(case: Any, number: int) -> np.ndarray:
        first = NOISE + len(case.prompts) * number
        if not settings["one_noise"]:
            return generate_pictures(pipeline, case.prompts, request, first)[0]
        return np.concatenate([generate_pictures(pipeline, [text], request, first)[0] for text in case.prompts])

    return run


def _ir_diffusion(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    import torch

    from benchmarks.editing.editors import NOISE
    from genkit.editing.ir_diffusion import IRDiffusionPipeline
    from genkit.world.caption import article

    painter = IRDiffusionPipeline.from_pipe(pipeline)

    def run(case: Any, number: int) -> np.ndarray:
        subjects = [f"{article(name.split()[0])} {name}" for name in case.subjects]
        generator = torch.Generator().manual_seed(NOISE + len(case.prompts) * number)
        return painter(subjects, case.prompts, height=128, width=128, generator=generator, **settings).frames

    return run


#: Name -> (what makes its runner, settings).
LINES: dict[str, tuple[Callable[[Any, str, dict[str, Any]], Run], dict[str, Any]]] = {
    "independent": (_independent, {"one_noise": False}),
    "independent, one noise": (_independent, {"one_noise": True}),
    "isolation alone": (_ir_diffusion, {"reposition": False}),
    "reposition alone": (_ir_diffusion, {"isolation": False}),
    "IR-Diffusion": (_ir_diffusion, {}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing_consistent``."""
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=LINES, default=list(LINES))
    add_common(parser, 25)


def run(options: argparse.Namespace) -> int:
    """Measure row by row; the report is whole after every ten sets."""
    from benchmarks.editing.editors import given
    from genkit.evaluation.edits import draw_subject_sets
    from genkit.world.edits import judge_subjects

    pipeline, _, store = begun(options, NAME)
    for kind in options.kinds:
        cases = draw_subject_sets(options.first + options.cases, int(kind[0]))[options.first :]
        for name in options.methods:
            make, settings = LINES[name]
            chosen = {**_usual(options.model, make is _ir_diffusion), **settings}
            chosen |= given(options.set) if make is _ir_diffusion else {}
            made, method = make(pipeline, options.model, chosen), (kind, name, chosen)
            measured(options, NAME, store, text, method, cases, made, judge_subjects, _sheet)
        print(text(store), flush=True)
    return 0


def text(store: Store) -> str:
    """The report of all rows."""
    return report("The same subjects in several pictures", store, _TOLD, _PARTS, list(LINES))


def _usual(model: str, guided: bool) -> dict[str, Any]:
    """Steps of the model's own file; of methods called by themselves guidance and fresh noise, too."""
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar

    sidecar = read_sidecar(locate(model).path)
    found = {"num_inference_steps": sidecar.defaults["steps"]}
    if guided:
        names = ("guidance_scale", "max_sequence_length")
        found |= {name: sidecar.defaults[name] for name in names if name in sidecar.defaults}
        found |= {"eta": sidecar.call["eta"]} if "eta" in sidecar.call else {}
    return found


def _sheet(cases: Any, outputs: dict[int, np.ndarray], row: Row, path: Path) -> None:
    from genkit.evaluation.sheet import contact_sheet, save_sheet

    if outputs:
        numbers = sorted(outputs)
        titles = [f"{number} {cases[number].prompts[0]}" for number in numbers]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_sheet(contact_sheet([outputs[number] for number in numbers], titles, 3, 4), path)
