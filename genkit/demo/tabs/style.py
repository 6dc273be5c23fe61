"""A picture in the manner of another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.pictures import take
from genkit.demo.engine.visitors import Visitor
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.errors import UsageError
from genkit.pipelines.request import Settings
from genkit.pipelines.tasks.style.settings import StyleSettings

_NUMBERS = ("steps", "guidance_scale", "temperature")
_USUAL = StyleSettings()


class Style(Tab):
    """The tab."""

    name, title = "style", "Style"
    kind, files = StyleSettings, ("image", "style")
    lead = "Take the colours, textures and light of one picture for another, which keeps its things and places."

    def build(self) -> None:
        offer, kind, examples = self.page.offer, StyleSettings, self.page.examples
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                with gr.Row():
                    for name, title, first in (("image", "Picture", examples[0]), ("style", "Style", examples[2])):
                        self.form[name] = gr.Image(
                            label=title, sources=["upload", "clipboard"], type="filepath", image_mode=None,
                            height=210, elem_id=f"style-{name}", format="png", buttons=[], min_width=140,
                            value=str(first.path),
                        )  # fmt: skip
                with gr.Row():
                    self.form["keep"] = fields.slider(
                        kind, "keep", 0, 1, 0.05, _USUAL.keep, label="Keep structure", min_width=140,
                        info=None,
                    )  # fmt: skip
                    self.form["strength"] = fields.slider(
                        kind, "strength", 0, 1, 0.05, _USUAL.strength, label="Strength of the colours",
                        min_width=140, info=None,
                    )  # fmt: skip
                go, halt = self.begin_row("Transfer the style")
                self.form["prompt"] = fields.text(
                    kind, "prompt", lines=1, info="What the result shows. Mostly not needed.", elem_id="style-prompt"
                )
                self.form["model"] = model = fields.model_choice(offer, ("image",), "toy-image")
                with gr.Accordion("More settings", open=False):
                    self.form["source_prompt"] = fields.text(kind, "source_prompt")
                    self.form["style_prompt"] = fields.text(kind, "style_prompt", label="What the style shows")
                    with gr.Row():
                        self.form["temperature"] = fields.number("temperature", _USUAL.temperature)
                        for name in ("steps", "guidance_scale"):
                            self.form[name] = fields.number(name, "own")
                with gr.Accordion("Attention and LoRA", open=False):
                    choice = fields.attention_choice(str(model.value))
                    self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place(("Before", "After"), self.take_in)
        gr.Examples(
            [[str(one.path), str(other.path)] for one, other in (examples[:2], examples[1:3], examples[::2])],
            [self.form["image"], self.form["style"]], label="Try one",
        )  # fmt: skip
        fields.follow_model(model, self.form["attention"])
        self.wire(go, halt, self.form["prompt"].submit)

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        for name, title in (("image", "Picture"), ("style", "Style")):
            if given[name] is None:
                raise UsageError(f"{title}: give a picture first; drop one, paste one, or take an example")
            values[name] = str(take(visitor, given[name], title, self.page.uploads))
        values |= fields.written(StyleSettings, given, *_NUMBERS)
        for name in ("source_prompt", "style_prompt", "prompt"):
            values[name] = text_or_none(given[name])
        values |= {name: given[name] for name in ("keep", "strength")}
        return [StyleSettings.from_mappings((ORIGIN, values))]

    def take_in(self, path: Path, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Changes of the form that make a result the picture, which the next style is transferred to."""
        return {self.form["image"]: str(path)}
