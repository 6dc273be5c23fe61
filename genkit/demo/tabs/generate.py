"""A picture, a video, or a video with sound from a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import defaults_of, has_fast, kind_of_model
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.pipelines.request import Settings
from genkit.pipelines.settings import GenerateSettings

KINDS = ("image", "video", "audio-video")
#: A prompt for each kind of output, for the shipped models.
EXAMPLES = [
    ["a red circle and a blue square on a white background", "toy-image"],
    ["a striped green triangle on a black background", "toy-image"],
    ["a dotted yellow cross on a purple background", "toy-dit"],
    ["a red circle moves right on a blue background", "toy-video"],
    ["a green square bounces on a black background", "toy-av"],
]
#: Frames of very small videos are written larger: video files store colour at half their size.
SMALL, ENLARGED = 256, 2


class Generate(Tab):
    """The tab."""

    name, title = "generate", "Generate"
    kind = GenerateSettings
    lead = "Make a picture, a video, or a video with sound from a sentence."

    def build(self) -> None:
        offer = self.page.offer
        kind = GenerateSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["prompt"] = fields.text(
                    kind, "prompt", lines=2, max_lines=5, info=None, autofocus=True, value=EXAMPLES[0][0],
                    placeholder="a red circle moves right on a blue background", elem_id="generate-prompt",
                )  # fmt: skip
                self.form["model"] = model = fields.model_choice(offer, KINDS, "toy-image")
                likes = defaults_of(str(model.value))
                go, halt = self.begin_row("Generate")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                self.form["variants"] = fields.variants()
                self.form["fast"] = gr.Checkbox(
                    value=False, label="Fast", info="Few steps without guidance, by the model's own LoRA for it.",
                    visible=has_fast(str(model.value)), elem_id="generate-fast",
                )  # fmt: skip
                with gr.Accordion("More settings", open=False):
                    self.form["negative_prompt"] = fields.text(kind, "negative_prompt")
                    with gr.Row():
                        for name in ("steps", "guidance_scale"):
                            self.form[name] = fields.number(name, likes.get(name))
                    with gr.Row():
                        for name in ("width", "height", "num_frames"):
                            self.form[name] = fields.number(name, likes.get(name))
                        self.form["num_frames"].visible = kind_of_model(str(model.value)) != "image"
                with gr.Accordion("Attention and LoRA", open=False):
                    choice = fields.attention_choice(str(model.value))
                    self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place()
        examples = [each for each in EXAMPLES if each[1] in offer.models]
        if examples:
            gr.Examples(examples, [self.form["prompt"], model], label="Try one", cache_examples=False)
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        opened = [self.form[name] for name in _OPEN]
        shown = [*opened, self.form["attention"], self.form["fast"]]
        model.change(self._model_changed, [model, self.form["attention"]], shown, **quiet)
        model.input(lambda: [""] * len(_OPEN), None, opened, **quiet)  # of the model before; settings restored stay
        self.wire(go, halt, self.form["prompt"].submit)

    @staticmethod
    def _model_changed(model: str, attention: Any) -> list[Any]:
        """Show what the model likes, and offer what suits it."""
        likes = defaults_of(model)
        still = kind_of_model(model) == "image"
        changes = [gr.update(placeholder=fields.open_value(likes.get(name))) for name in _OPEN[:-1]]
        frames = gr.update(placeholder=fields.open_value(likes.get("num_frames")), visible=not still)
        return [*changes, frames, fields.suited(model, attention), gr.update(visible=has_fast(model))]

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        values |= fields.written(GenerateSettings, given, *_NUMBERS)
        values["negative_prompt"] = text_or_none(given["negative_prompt"])
        if kind_of_model(values["model"]) == "image":
            values["num_frames"] = None  # hidden on the page; what was typed for a video stays there
        # Hidden for models without such a LoRA; a tick from the model before stays there.
        values["fast"] = given["fast"] if has_fast(values["model"]) else False
        values["prompt"] = given["prompt"] if given["prompt"] is not None else ""
        likes = defaults_of(values["model"])
        if kind_of_model(values["model"]) != "image" and likes.get("width", SMALL) < SMALL:
            values["enlarge"] = ENLARGED
        return self.several(GenerateSettings, values, given)


_NUMBERS = ("steps", "guidance_scale", "width", "height", "num_frames", "seed")
_OPEN = ("steps", "guidance_scale", "width", "height", "num_frames")
