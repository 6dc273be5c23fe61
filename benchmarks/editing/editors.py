"""The methods that are compared: how each is made of a pipeline, with which settings, for which models."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Noise of case ``i`` comes from this seed plus ``i``.
NOISE = 7000
#: Makes the output of a case from its number.
Run = Callable[[Any, int], np.ndarray]


def load(model: str, dtype: str) -> tuple[Any, bool]:
    """A model's pipeline and whether it makes clips."""
    import genkit

    pipeline = genkit.load(model, dtype=dtype, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, "Wan" in type(pipeline).__name__


def given(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as arguments of a call; values are Python literals, other text is text."""
    found = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise SystemExit(f"--set: got {pair!r}, allowed: NAME=VALUE")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


@dataclass(frozen=True)
class Editor:
    """One line of the tables.

    Args:
        make: (pipeline, model's name, settings) -> runner of cases.
        fits: whether a pipeline can be edited so.
        common: settings for all kinds of edit.
        by_kind: settings for some.
        tuned: settings from the command line apply.
        generates: outputs are drawn from the prompt alone: the prompt is judged and nothing kept.
    """

    make: Callable[[Any, str, dict[str, Any]], Run]
    fits: Callable[[Any], bool] = lambda pipeline: True
    common: Mapping[str, Any] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuned: bool = True
    generates: bool = False

    def settings(self, kind: str) -> dict[str, Any]:
        """Settings for one kind of edit."""
        return {**self.common, **self.by_kind.get(kind, {})}

    def judge(self, case: Any, output: np.ndarray) -> dict[str, float]:
        """Attributes of an output, flags and decibels."""
        from genkit.evaluation.edits import judge_sample
        from genkit.world.edits import judge_edit, psnr_of_stay

        if self.generates:
            return judge_sample(case, output)
        return {**judge_edit(case, output), "psnr": psnr_of_stay(case, output)}


def _truth(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    return lambda case, number: case.target


def _autoencoder(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    from genkit.editing.shared import EditModel

    edit = EditModel.of(pipeline)

    def run(case: Any, number: int) -> np.ndarray:
        return _shaped(edit.decode(edit.encode(case.target)), case)

    return run


def _generated(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    from genkit.evaluation.toy import ClipRequest, generate_clips
    from genkit.evaluation.toy_picture import PictureRequest, generate_pictures

    def run(case: Any, number: int) -> np.ndarray:
        prompts = [case.target_prompt]
        if case.clip:
            frames, height, width = case.source.shape[:3]
            return generate_clips(pipeline, prompts, ClipRequest(frames, height, width), NOISE + number)[0][0]
        request = PictureRequest.of_model(model, *case.source.shape[:2], steps=20)
        return generate_pictures(pipeline, prompts, request, NOISE + number)[0][0]

    return run


def _shaped(frames: np.ndarray, case: Any) -> np.ndarray:
    return frames if case.clip else frames[0]


def _class(path: str, source: bool = True) -> Callable[[Any, str, dict[str, Any]], Run]:
    """Makes runners of an editing pipeline of genkit's."""

    def make(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
        import torch

        module, _, name = path.rpartition(".")
        editor = getattr(importlib.import_module(f"genkit.editing.{module}"), name).from_pipe(pipeline)
        told = {**_told(model), **settings}

        def run(case: Any, number: int) -> np.ndarray:
            prompts = (case.target_prompt, case.source_prompt) if source else (case.target_prompt,)
            generator = torch.Generator().manual_seed(NOISE + number)
            return _shaped(editor(case.source, *prompts, generator=generator, **told).frames, case)

        return run

    return make


def _told(model: str) -> dict[str, Any]:
    """Arguments of every call that the model's own file names."""
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar

    defaults = read_sidecar(locate(model).path).defaults
    return {name: defaults[name] for name in ("max_sequence_length",) if name in defaults}


def _flow(pipeline: Any) -> bool:
    from genkit.editing.shared import EditModel

    return EditModel.of(pipeline).flow


#: Name -> method, in the order of the tables.
EDITORS: dict[str, Editor] = {
    "true target": Editor(_truth, tuned=False),
    "autoencoder": Editor(_autoencoder, tuned=False),
    "generated": Editor(_generated, tuned=False, generates=True),
    "img2img": Editor(_class("image_to_image.ImageToImagePipeline", source=False)),
    "flowedit": Editor(_class("flow_edit.FlowEditPipeline"), fits=_flow),
}
