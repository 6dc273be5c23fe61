"""The same subjects in four pictures: IR-Diffusion against pictures that are made one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.editing.report import add_common, begun, mean, measured, report
from benchmarks.editing.store import Row, Store

NAME = "editing_consistent"
KINDS = ("1 subject", "2 subjects")
_TOLD = (
    "Subjects that are described once (a striped red circle) in four pictures on four backgrounds, whose prompts name "
    "them in short (a red circle). Look: subjects of the four pictures with colour, shape and texture as described. "
    "Pairs: of the four pictures, alike in colour, shape, texture and size; nothing says the size. As asked: pictures "
    "with background, number of objects and what the prompt names of them as prompted. Shares of 1 with their standard "
    "error over sets. One noise: the four pictures start from the same noise, as those of IR-Diffusion do. All said: "
    "every prompt has the whole description, the bound that the model sets. "
    "Lines that name a part have the others off."
)
_PARTS = (
    ("Look: subjects as described", mean("look", 2)),
    ("Pairs alike in colour, shape, texture and size", mean("same", 2)),
    ("Texture: pairs", mean("texture", 2)),
    ("Size: pairs", mean("size", 2)),
    ("Pictures as asked", mean("asked", 2)),
)
Run = Callable[[Any, int], np.ndarray]


def _independent(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    from benchmarks.editing.editors import NOISE
    from genkit.evaluation.toy_picture import PictureRequest, generate_pictures

    side = settings["size"]
    request = PictureRequest.of_model(model, side, side, settings["num_inference_steps"])

    def run(case: Any, number: int) -> np.ndarray:
        first = NOISE + len(case.prompts) * number
        prompts = list(case.said if settings["said"] else case.prompts)
        if not settings["one_noise"]:
            return generate_pictures(pipeline, prompts, request, first)[0]
        return np.concatenate([generate_pictures(pipeline, [text], request, first)[0] for text in prompts])

    return run


@cache
def _rehearsals(side: int, steps: int) -> dict[tuple[str, ...], Any]:
    """Masks of the sets so far: the lines of a run differ in what follows the rehearsal, so they share it."""
    return {}


def _ir_diffusion(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    import torch

    from benchmarks.editing.editors import NOISE
    from genkit.editing.ir_diffusion import IRDiffusionPipeline
    from genkit.world.caption import article

    painter = IRDiffusionPipeline.from_pipe(pipeline)
    settings = dict(settings)
    side = settings.pop("size")
    shared = _rehearsals(side, settings["num_inference_steps"])

    def run(case: Any, number: int) -> np.ndarray:
        subjects = [f"{article(name.split()[0])} {name}" for name in case.looks]
        generator = torch.Generator().manual_seed(NOISE + len(case.prompts) * number)
        output = painter(
            subjects, case.prompts, keywords=case.subjects, masks=shared.get(case.prompts), height=side, width=side,
            generator=generator, **settings,
        )  # fmt: skip
        shared[case.prompts] = output.masks
        return output.frames

    return run


#: Name -> (what makes its runner, settings).
LINES: dict[str, tuple[Callable[[Any, str, dict[str, Any]], Run], dict[str, Any]]] = {
    "independent": (_independent, {"one_noise": False, "said": False}),
    "independent, one noise": (_independent, {"one_noise": True, "said": False}),
    "independent, all said": (_independent, {"one_noise": False, "said": True}),
    "isolation alone": (_ir_diffusion, {"reposition": False, "text_share": 0.0}),
    "reposition alone": (_ir_diffusion, {"isolation": False, "text_share": 0.0}),
    "text alone": (_ir_diffusion, {"isolation": False, "reposition": False}),
    "IR-Diffusion without text": (_ir_diffusion, {"text_share": 0.0}),
    "IR-Diffusion from the first step": (_ir_diffusion, {"start": 0.0}),
    "IR-Diffusion": (_ir_diffusion, {}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks editing_consistent``."""
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--size", type=int, default=128, help="height and width of the pictures (default 128)")
    parser.add_argument("--steps", type=int, help="denoising steps; those of the model's own file when left out")
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
            chosen = {**_usual(options.model, make is _ir_diffusion), **settings, "size": options.size}
            chosen |= {} if options.steps is None else {"num_inference_steps": options.steps}
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
