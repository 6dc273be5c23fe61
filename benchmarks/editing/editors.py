"""The methods that are compared: how each is made of a pipeline, with which settings, for which models."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Noise of case ``i`` comes from this seed plus ``i``.
NOISE = 7000
#: Kind of edit -> preset of ``genkit edit``.
PRESET_OF = {
    "colour": "colour", "shape": "shape", "texture": "material", "background": "background", "add": "add",
    "remove": "remove",
}  # fmt: skip
#: Value of ``keep_words``: colour and shape of every object of the case that stays, as one gives them to --keep-words.
THINGS = "things"
#: Makes the output of a case from its number.
Run = Callable[[Any, int], np.ndarray]


def load(model: str, dtype: str) -> tuple[Any, bool]:
    """A model's pipeline and whether it makes clips."""
    import genkit
    from genkit.editing.shared import EditModel

    pipeline = genkit.load(model, dtype=dtype, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, EditModel.of(pipeline).video


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
        method: of ``genkit edit``, whose values where nobody says it takes; None for the bounds.
        own: steps and guidance are those of the model's own file, as of a baseline that knows no better ones.
        presets: takes the command's preset for the kind of edit, too.
        names: kinds of edit that are told what stays.
        changes: settings of this line in place of those.
        fits: whether a pipeline can be edited so.
        generates: outputs are drawn from the prompt alone: the prompt is judged and nothing kept.
    """

    make: Callable[[Any, str, dict[str, Any]], Run]
    method: str | None = None
    own: bool = False
    presets: bool = False
    names: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    fits: Callable[[Any], bool] = lambda pipeline: True
    generates: bool = False

    def settings(self, kind: str, pipeline: Any, model: str) -> dict[str, Any]:
        """Settings of ``genkit edit`` for one kind of edit."""
        from genkit.pipelines.tasks.edit.choice import usual_values

        if self.method is None:
            return {}
        preset = PRESET_OF[kind] if self.presets else None
        usual = usual_values(self.method, _flow(pipeline), preset)
        if kind in self.names:
            usual["keep_words"] = THINGS
        return {**usual, **(_own(model) if self.own else {}), **self.changes}

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


def _edited(pipeline: Any, model: str, settings: dict[str, Any]) -> Run:
    """Runs the method that ``settings["method"]`` names, called as the command does."""
    import torch

    from genkit.pipelines.tasks.edit.methods import PIPELINES
    from genkit.pipelines.tasks.edit.words import differing

    settings = dict(settings)
    method = settings.pop("method")
    editor = PIPELINES[method].from_pipe(pipeline)
    settings["num_inference_steps"] = settings.pop("steps")
    words = settings.pop("words", ())
    gone = settings.pop("source_words", ())
    things = settings.pop("keep_words", None) == THINGS
    told = {**_told(model, method), **settings}

    def run(case: Any, number: int) -> np.ndarray:
        call = dict(told)
        if method != "img2img":
            call["source_prompt"] = case.source_prompt
        if words:
            call["words"] = differing(case.source_prompt, case.target_prompt) if words == ("auto",) else words
        if things:
            kept = [actor for actor in case.before.actors if actor in case.after.actors]
            call["keep_words"] = [f"{actor.colour} {actor.shape}" for actor in kept]
        if gone:
            call["source_words"] = differing(case.target_prompt, case.source_prompt) if gone == ("auto",) else gone
        if words and method == "vimaedit":
            call["source_words"] = differing(case.target_prompt, case.source_prompt)
        generator = torch.Generator().manual_seed(NOISE + number)
        return _shaped(editor(case.source, case.target_prompt, generator=generator, **call).frames, case)

    return run


def _told(model: str, method: str) -> dict[str, Any]:
    """Arguments of every call that the model's own file names."""
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar

    sidecar = read_sidecar(locate(model).path)
    found = {name: sidecar.defaults[name] for name in ("max_sequence_length",) if name in sidecar.defaults}
    return found | ({"eta": sidecar.call["eta"]} if method == "img2img" and "eta" in sidecar.call else {})


def _own(model: str) -> dict[str, Any]:
    """Steps and guidance of the model's own file."""
    from genkit.models.registry import locate
    from genkit.models.sidecar import read_sidecar

    defaults = read_sidecar(locate(model).path).defaults
    return {name: defaults[name] for name in ("steps", "guidance_scale") if name in defaults}


def _flow(pipeline: Any) -> bool:
    from genkit.editing.shared import EditModel

    return EditModel.of(pipeline).flow


def _line(method: str, **more: Any) -> Editor:
    changes = {"method": method, **more.pop("changes", {})}
    return Editor(_edited, method, changes=changes, **more)


#: Name -> method, in the order of the tables. Without presets one setting does for all kinds.
EDITORS: dict[str, Editor] = {
    "true target": Editor(_truth),
    "autoencoder": Editor(_autoencoder),
    "generated": Editor(_generated, generates=True),
    "img2img": _line("img2img", own=True),
    "inversion + p2p": _line("p2p", own=True),
    "inversion alone": _line("p2p", own=True, changes={"keep": 0.0, "keep_maps": 0.0}),
    "flowedit": _line("flowedit", fits=_flow),
    "infedit, no control": _line("infedit", changes={"keep": 0.0, "keep_maps": 0.0}),
    "infedit": _line("infedit"),
    "infedit, presets": _line("infedit", presets=True, names=("background", "add")),
    "vimaedit": _line("vimaedit"),
}
