"""A picture or clip changed by words: what it shows, and what it shall show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.engine.pictures import take
from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import kind_of_model
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.errors import UsageError
from genkit.pipelines.request import Settings
from genkit.pipelines.tasks.edit.settings import FREE, METHODS, PAIRED, PRESETS, EditSettings

SUITS = "the usual"
ADVISED = "by the kind of change"
_NUMBERS = ("steps", "guidance_scale", "source_guidance_scale", "strength", "keep", "keep_maps", "settle", "seed")


class Edit(Tab):
    """The tab."""

    name, title = "edit", "Edit"
    kind, files = EditSettings, ("image", "clip")
    lead = "Say what a picture shows and what it shall show; the rest stays where it is."
    hint = "The green button begins, or Enter in what it shall show."

    def build(self) -> None:
        offer, kind, first = self.page.offer, EditSettings, self.page.examples[0]
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["image"] = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], type="filepath", image_mode=None, height=240,
                    elem_id="edit-image", format="png", elem_classes="given", buttons=[], value=str(first.path),
                )  # fmt: skip
                self.form["clip"] = gr.Video(
                    label="Clip", sources=["upload"], height=240, visible=False, elem_id="edit-clip", loop=True
                )
                self.form["source_prompt"] = fields.text(
                    kind, "source_prompt", lines=1, info=None, placeholder="a red circle on a white background",
                    elem_id="edit-source", value=first.caption,
                )  # fmt: skip
                self.form["prompt"] = fields.text(
                    kind, "prompt", label="What it shall show", lines=1, info=None, elem_id="edit-prompt",
                    placeholder="a blue circle on a white background", value=first.prompt,
                )  # fmt: skip
                go, halt = self.begin_row("Edit")
                self.form["preset"] = gr.Radio(
                    list(PRESETS), value=PRESETS[0], label="Kind of change",
                    info="Sets how much of outlines and places is kept.", elem_id="edit-preset",
                )  # fmt: skip
                self.form["model"] = model = fields.model_choice(offer, ("image", "video"), "toy-image")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                self.form["variants"] = fields.variants()
                with gr.Accordion("More settings", open=False):
                    self.form["method"] = gr.Dropdown(
                        [SUITS, *METHODS], value=SUITS, label="Method", info=fields.help_of(kind, "method")
                    )
                    with gr.Row():
                        self.form["keep"] = fields.number(
                            "keep", ADVISED, info="Share of the steps, 0 to 1, in which outlines and places are kept."
                        )
                        self.form["keep_maps"] = fields.number(
                            "keep_maps", ADVISED, info="The same of where words act that both prompts have."
                        )
                        self.form["strength"] = fields.number("strength", "the method's own", info="Above 0, up to 1.")
                    self.form["words"] = gr.Textbox(
                        label="Change only where these words act", placeholder="the method's own",
                        info="Words of the new prompt, with commas; auto: those that are new, none: anywhere.",
                    )  # fmt: skip
                    self.form["source_words"] = gr.Textbox(
                        label="Remove only where these words act", placeholder=ADVISED, elem_id="edit-source-words",
                        info="Words of the old prompt, with commas; auto: those that go, none: anywhere.",
                    )  # fmt: skip
                    self.form["keep_words"] = gr.Textbox(
                        label="Keep the picture where these words act", placeholder="none", elem_id="edit-keep-words",
                        info="Words of both prompts, with commas: the things on it when the background changes.",
                    )  # fmt: skip
                    with gr.Row():
                        self.form["new_words"] = gr.Dropdown(
                            [ADVISED, PAIRED, FREE], value=ADVISED, label="Where new words act", min_width=150,
                            info="Paired: where the word they stand for did; free: where the model likes.",
                        )  # fmt: skip
                        self.form["settle"] = fields.number(
                            "settle", 0, min_width=150, info="Share of the steps, from the first on, in which the "
                            "large colours of another background settle.",
                        )  # fmt: skip
                    with gr.Row():
                        for name in ("steps", "guidance_scale", "source_guidance_scale"):
                            self.form[name] = fields.number(name, "own")
                    self.form["negative_prompt"] = fields.text(kind, "negative_prompt", info=None)
                with gr.Accordion("Attention and LoRA", open=False):
                    choice = fields.attention_choice(str(model.value))
                    self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place(("Before", "After"), self.take_in)
        names = ("source_prompt", "prompt", "preset", "model")
        for kind_of_input, model_name, every, title in (
            ("image", "toy-image", self.page.examples, "Try one"),
            ("clip", "toy-video", [self.page.clip], "Try a clip; the model of videos takes longer"),
        ):
            if model_name in offer.models:
                gr.Examples(
                    [[str(each.path), each.caption, each.prompt, each.preset, model_name] for each in every],
                    [self.form[name] for name in (kind_of_input, *names)], label=title,
                    elem_id=f"edit-examples-{kind_of_input}",
                )  # fmt: skip
        model.change(
            self._model_changed, [model, self.form["attention"]],
            [self.form[name] for name in ("image", "clip", "attention")], queue=False, api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip
        self.wire(go, halt, self.form["prompt"].submit, self.form["source_prompt"].submit)

    @staticmethod
    def _model_changed(model: str, attention: Any) -> list[Any]:
        moving = kind_of_model(model) == "video"
        return [gr.update(visible=not moving), gr.update(visible=moving), fields.suited(model, attention)]

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        moving = kind_of_model(values["model"]) == "video" and given["clip"] is not None
        file = given["clip"] if moving else given["image"]
        if file is None:
            raise UsageError("give a picture first: drop one, paste one, or take an example")
        values["image"] = str(take(visitor, file, "Clip" if moving else "Picture", self.page.uploads, clip=moving))
        values |= fields.written(EditSettings, given, *_NUMBERS)
        for name in ("source_prompt", "negative_prompt", "preset"):
            values[name] = text_or_none(given[name])
        values["prompt"] = given["prompt"] if given["prompt"] is not None else ""
        values["method"] = None if given["method"] in (SUITS, "", None) else given["method"]
        for name in ("words", "source_words", "keep_words"):
            if isinstance(given[name], str) and given[name].strip():
                values[name] = tuple(word.strip() for word in given[name].split(",") if word.strip())
        values["new_words"] = None if given["new_words"] in (ADVISED, "", None) else given["new_words"]
        return self.several(EditSettings, values, given)

    def take_in(self, path: Path, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Changes of the form that make a result its input: the file, what it shows, which is where its change begins,
        and a model for its kind."""
        form, moving = self.form, path.suffix != ".png"
        shown = {form["clip" if moving else "image"]: gr.update(value=str(path), visible=True)}
        hidden = {form["image" if moving else "clip"]: gr.update(visible=False)}
        changes = {**shown, **hidden, form["source_prompt"]: settings.get("prompt")}
        if settings.get("prompt"):
            changes[form["prompt"]] = settings["prompt"]  # not what was said about the picture before
        kinds = ("video",) if moving else ("image",)
        if settings.get("model") in self.page.offer.models_of(*kinds):
            changes[form["model"]] = settings["model"]
        return changes
