"""A part of a picture made anew: painted with the mouse, or marked by an uploaded mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.engine.job import Job, State
from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.pictures import read, sent, store_mask, take, union
from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import attentions
from genkit.demo.tabs import fields, show
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.demo.tabs.sent import received
from genkit.errors import UsageError
from genkit.pipelines.request import Settings
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

#: The mask on the canvas: a colour that is seen on most pictures, nearly opaque.
PAINT = "rgba(245, 197, 24, 0.9)"
_NUMBERS = ("steps", "guidance_scale", "seed", "mask_grow", "feather", "context")


class Inpaint(Tab):
    """The tab."""

    name, title = "inpaint", "Inpaint"
    lead = "Paint over a part of a picture and say what appears there. Outside of it every pixel stays as it is."

    def build(self) -> None:
        offer, kind = self.page.offer, InpaintSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["canvas"] = canvas = gr.ImageEditor(
                    label="Picture; paint over what is made anew", sources=["upload", "clipboard"],
                    transforms=(), format="png", image_mode="RGBA", type="pil", fixed_canvas=False, height=430,
                    layers=gr.LayerOptions(allow_additional_layers=False, layers=["mask"]),
                    brush=gr.Brush(default_size=18, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
                    eraser=gr.Eraser(default_size=18), elem_id="inpaint-canvas", buttons=[],
                    value=self._value(str(self.page.examples[0].path)),
                )  # fmt: skip
                with gr.Row(elem_classes="tools"):
                    clear = gr.Button("Clear mask", elem_classes="slim", min_width=110, size="sm")
                    self.form["mask_invert"] = gr.Checkbox(
                        label="Swap inside and outside", container=False, min_width=150
                    )
                self.form["prompt"] = fields.text(
                    kind, "prompt", label="What appears there", lines=1, info=None, elem_id="inpaint-prompt",
                    placeholder="a blue square on a white background", value="a blue square on a white background",
                )  # fmt: skip
                go, halt = self.begin_row("Inpaint")
                self.form["model"] = model = fields.model_choice(offer, ("image",), "toy-image")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                with gr.Accordion("A mask from a file", open=False):
                    self.form["mask"] = gr.Image(
                        label="Mask: white is made anew", sources=["upload", "clipboard"], type="filepath",
                        image_mode=None, height=180, format="png", elem_id="inpaint-mask", buttons=[],
                    )  # fmt: skip
                with gr.Accordion("More settings", open=False):
                    with gr.Row():
                        self.form["mask_grow"] = fields.number("mask_grow", 0, info="Pixels; negative shrinks.")
                        self.form["feather"] = fields.number("feather", 0, info="Pixels of the border blended.")
                        self.form["context"] = fields.number("context", "own", info="Pixels around it that are seen.")
                    with gr.Row():
                        for name in ("steps", "guidance_scale"):
                            self.form[name] = fields.number(name, "own")
                    self.form["negative_prompt"] = fields.text(kind, "negative_prompt", info=None)
                with gr.Accordion("Attention and LoRA", open=False):
                    choice = fields.attention_choice(str(model.value))
                    self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.status()
                self.outputs |= fields.before_and_after("inpaint", "Before  |  after", "Before", "After")
        clear.click(
            self._cleared, canvas, canvas, queue=False, api_visibility="private", show_progress="hidden",
            preprocess=False,
        )  # fmt: skip
        model.change(
            lambda name: gr.update(choices=attentions(name), value=attentions(name)[0]), model, self.form["attention"],
            queue=False, api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        self.wire(go, halt, self.form["prompt"].submit)

    @staticmethod
    def _value(picture: Any) -> Any:
        """A canvas with a picture and nothing painted."""
        return None if picture is None else {"background": picture, "layers": [], "composite": picture}

    def _cleared(self, value: Any, request: gr.Request) -> Any:
        """The canvas without what was painted on it."""
        painted = received(self.form["canvas"], value, request)
        background = None if painted is None else painted["background"]
        if isinstance(background, bytes):
            from io import BytesIO

            from PIL import Image

            background = Image.open(BytesIO(background))
        return self._value(background)

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        painted, roots = given["canvas"], self.page.uploads
        if not painted or painted["background"] is None:
            raise UsageError("give a picture first: drop or paste one on the canvas")
        image = sent(visitor, painted["background"], "Picture", roots)
        height, width = read(image, "Picture").pixels.shape[:2]
        values |= {"image": str(image), "mask": str(self._mask(given, visitor, height, width))}
        values |= fields.written(InpaintSettings, given, *_NUMBERS)
        values["mask_invert"] = bool(given["mask_invert"]) or None
        values["negative_prompt"] = text_or_none(given["negative_prompt"])
        values["prompt"] = given["prompt"] if given["prompt"] is not None else ""
        return [InpaintSettings.from_mappings((ORIGIN, values))]

    def _mask(self, given: Mapping[str, Any], visitor: Visitor, height: int, width: int) -> Path:
        """The uploaded mask, or else what was painted."""
        roots = self.page.uploads
        if given["mask"] is not None:
            return take(visitor, given["mask"], "Mask", roots)
        layers = [sent(visitor, layer, "Mask", roots) for layer in given["canvas"]["layers"]]
        mask, told = union(layers, height, width)
        for line in told:
            gr.Warning(line)
        if not mask.any() and not given["mask_invert"]:
            raise UsageError("nothing is painted: paint over what shall be made anew, or upload a mask")
        return store_mask(visitor, mask)

    def fill(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().fill({name: value for name, value in settings.items() if name not in ("image", "mask")})

    def shown(self, state: State, job: Job) -> dict[str, Any]:
        return fields.progress_of(state, job, show.status(state))
