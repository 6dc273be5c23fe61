"""The model's own attention against a method, at the same seed: both results, where they differ, time and density."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from genkit.demo.engine.difference import heat
from genkit.demo.engine.job import DONE, Job, State
from genkit.demo.engine.kept import MOST
from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import OWN, RECIPE, attentions, defaults_of, kind_of_model
from genkit.demo.tabs import fields, show
from genkit.demo.tabs.base import Tab
from genkit.demo.tabs.generate import KINDS
from genkit.errors import UsageError
from genkit.evaluation.comparison.bands import band
from genkit.evaluation.comparison.numbers import METRICS, Output, compare_outputs
from genkit.pipelines.request import Settings
from genkit.pipelines.settings import GenerateSettings


class Compare(Tab):
    """The tab."""

    name, title = "compare", "Compare attention"
    lead = "Run the model as it is and with another attention, from the same seed, and look at what changes."

    def build(self) -> None:
        offer, kind = self.page.offer, GenerateSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["prompt"] = fields.text(
                    kind, "prompt", lines=2, max_lines=5, info=None, value=_PROMPT, elem_id="compare-prompt"
                )
                self.form["model"] = model = fields.model_choice(offer, KINDS, "toy-image")
                choices = attentions(str(model.value))
                first = "neighborhood" if "neighborhood" in choices else choices[1]
                choice = fields.attention_choice(str(model.value), own=False, value=first, where=_WHERE)
                self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                go, halt = self.begin_row("Compare")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                with gr.Accordion("More settings", open=False), gr.Row():
                    for name in ("steps", "width", "height"):
                        self.form[name] = fields.number(name, defaults_of(str(model.value)).get(name))
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.status()
                self.outputs["slider"] = gr.ImageSlider(
                    label="The model's own  |  the method", format="png", type="filepath", interactive=False,
                    max_height=460, elem_classes="stage", elem_id="compare-slider", buttons=["fullscreen"],
                )  # fmt: skip
                with gr.Row(elem_classes="pair", visible=False) as pair:
                    self.outputs["before"] = gr.Video(
                        label="The model's own", interactive=False, loop=True, autoplay=True, buttons=[],
                        elem_id="compare-before",
                    )  # fmt: skip
                    self.outputs["after"] = gr.Video(
                        label="The method", interactive=False, loop=True, autoplay=True, buttons=[],
                        elem_id="compare-after",
                    )  # fmt: skip
                self.outputs["pair"] = pair
                self.outputs["table"] = gr.HTML("", elem_id="compare-table")
                self.outputs["difference"] = gr.Image(
                    label="Where they differ (bright = much)", format="png", interactive=False, visible=False,
                    height=260, elem_id="compare-difference", elem_classes="stage", buttons=["fullscreen"],
                )  # fmt: skip
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        opened = [self.form[name] for name in _OPEN]
        model.change(self._model_changed, [model, self.form["attention"]], [self.form["attention"], *opened], **quiet)
        model.input(lambda: [""] * len(_OPEN), None, opened, **quiet)  # of the model before
        where = self.form["schedule"]
        asked = [self.form[name] for name in ("attention", "schedule", "steps", "model")]
        self.form["attention"].change(suited_where, asked, where, **quiet)
        for changed in ("steps", "model"):
            self.form[changed].change(fitting_where, asked, where, **quiet)
        self.wire(go, halt, self.form["prompt"].submit)

    @staticmethod
    def _model_changed(model: str, attention: Any) -> list[Any]:
        likes = defaults_of(model)
        open_values = [gr.update(placeholder=fields.open_value(likes.get(name))) for name in _OPEN]
        return [fields.suited(model, attention, own=False), *open_values]

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        if given["attention"] in (None, "", OWN):
            raise UsageError("choose an attention to compare with the model's own")
        where = fitting_where(*(given[name] for name in ("attention", "schedule", "steps", "model")))
        given = {**given, "schedule": where}
        values = self.common(given, visitor)
        values |= fields.written(GenerateSettings, given, "steps", "width", "height", "seed")
        values["prompt"] = given["prompt"] if given["prompt"] is not None else ""
        if kind_of_model(values["model"]) != "image":
            values["enlarge"] = 2
        plain = {name: value for name, value in values.items() if name not in _ATTENTION}
        return [GenerateSettings.from_mappings((ORIGIN, each)) for each in (plain, values)]

    def start(self, visitor: Visitor, wanted: list[Any]) -> Job:
        return self.page.desk.start(visitor, self.name, wanted, frames=True)

    def shown(self, state: State, job: Job) -> dict[str, Any]:
        changes: dict[str, Any] = {"status": show.status(state)}
        if state.phase != DONE:
            if state.preview is not None:
                first = str(state.made[0].path) if state.made and state.made[0].path.suffix == ".png" else state.preview
                changes["slider"] = gr.update(visible=True, value=(first, state.preview))
                changes["pair"] = gr.update(visible=False)
            return changes
        own, other = state.made
        moving = own.path.suffix != ".png"
        changes["slider"] = gr.update(visible=not moving, value=None if moving else (str(own.path), str(other.path)))
        changes["pair"] = gr.update(visible=moving)
        changes["before"] = str(own.path) if moving else None
        changes["after"] = str(other.path) if moving else None
        changes["difference"] = gr.update(visible=True, value=heat(own.frames, other.frames))
        changes["table"] = _table(own, other)
        return changes


_OPEN = ("steps", "width", "height")
#: One that says where things are: what a prompt leaves open, two runs decide differently.
_PROMPT = "a red circle left of a blue square on a white background"
#: Where a method begins, by the steps that are run at least. What is drawn is decided in the first steps: with these as
#: they are, the two pictures show the same scene. Runs of few steps leave fewer as they are, and of one step none.
_WHERES = {8: "steps=5:", 2: "steps=1:", 0: ""}
_LEAST = {where: least for least, where in _WHERES.items() if where}
_WHERE = _WHERES[8]
_ATTENTION = ("attention", "recipe", "attention_args", "schedule")


def suited_where(attention: Any, where: Any, steps: Any = None, model: Any = None) -> str:
    """Where a choice applies until somebody says: a recipe knows it itself, a method begins behind the first steps.

    Args:
        where: what the field holds; what a visitor wrote stays.
        steps: what the field holds; open, the model's own number counts.
    """
    if str(attention).startswith(RECIPE):
        return "" if where == _WHERE else where
    return fitting_where(attention, where or _WHERE, steps, model)


def fitting_where(attention: Any, where: Any, steps: Any, model: Any) -> Any:
    """The same of a run whose number of steps was changed: what was set of itself leaves a step to the method."""
    if where not in _LEAST or str(attention).startswith(RECIPE):
        return where
    text = str(steps if steps not in (None, "") else defaults_of(str(model)).get("steps") or "").strip()
    count = int(text) if text.isdecimal() else max(_WHERES)  # what is no number is told as such when it is run
    return where if count >= _LEAST[where] else next(begin for least, begin in _WHERES.items() if count >= least)


def _table(own: Any, other: Any) -> str:
    """Time, pairs of the attention, and how far apart the two are."""
    name = other.settings.attention or other.settings.recipe
    report = other.report or {}
    rows = [("time", f"{own.seconds:.1f} s", f"{other.seconds:.1f} s")]
    share = show.density(other.report)
    rows.append(("query-key pairs executed", "100%", share or "depends on the data"))
    if other.settings.attention:
        rows.append(("where it applied", "–", other.settings.schedule or "everywhere"))
    if report:
        rows.append(("calls that ran it", "–", f"{report['ran']} of {report['calls']}"))
    rows += [(what, "–", told) for what, told in _apart(own.frames, other.frames)]
    body = "".join(
        f"<tr><td>{escape(what)}</td><td>{escape(first)}</td><td><b>{escape(second)}</b></td></tr>"
        for what, first, second in rows
    )
    header = f"<tr><th></th><th>own attention</th><th>{escape(str(name))}</th></tr>"
    return f'<table class="versus">{header}{body}</table>'


def _apart(own: np.ndarray, other: np.ndarray) -> list[tuple[str, str]]:
    """How far the two are apart, by the numbers of ``genkit compare``, and the word for it."""
    if np.array_equal(own, other):
        return [("compared with the model's own", "equal")]
    every = max(1, -(-own[..., 0].size // MOST))  # of long clips as many frames as can be compared at once
    found = compare_outputs(Output(other[::every]), Output(own[::every]), False).values
    of = "" if every == 1 or len(own) == 1 else f", every {every}th frame"
    rows = [(f"{METRICS[name].title} to the model's own{of}", _told(name, found[name])) for name in ("psnr", "ssim")
            if name in found]  # fmt: skip
    word = band(found)
    return rows if word is None else [*rows, ("compared with the model's own", word)]


def _told(name: str, value: float) -> str:
    metric = METRICS[name]
    return f"{value:.{metric.digits}f} {metric.unit}".strip()
