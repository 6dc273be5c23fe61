"""A part of a picture made anew: painted with the mouse, or marked by an uploaded mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.pictures import PAINT, marked, read, sent, store_mask, take, union
from genkit.demo.engine.visitors import Visitor
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, refusal, text_or_none
from genkit.demo.tabs.sent import received
from genkit.demo.tabs.stage import QUEUED
from genkit.errors import GenkitError, UsageError, counted
from genkit.media.canvas import Mask, read_mask
from genkit.pipelines.request import Settings
from genkit.pipelines.tasks.inpaint.choice import PAINTA, RASG, RESAMPLE
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

#: The mask on the canvas, nearly opaque.
BRUSH = f"rgba({', '.join(map(str, PAINT))}, 0.9)"
#: What decides which part is made anew.
_MASK = ("canvas", "mask", "mask_invert", "mask_grow", "feather")
_NUMBERS = ("steps", "guidance_scale", "seed", "context", "resample")


class Inpaint(Tab):
    """The tab."""

    name, title = "inpaint", "Inpaint"
    kind, files = InpaintSettings, ("canvas", "image", "mask", "mask_channel")
    usual = {"painta": PAINTA, "rasg": RASG}
    lead = "Paint over a part of a picture and say what appears there. Outside of it every pixel stays as it is."
    hint = "The green button begins, or Enter in what appears there."

    def build(self) -> None:
        offer, kind = self.page.offer, InpaintSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["canvas"] = canvas = gr.ImageEditor(
                    label="Paint over it", sources=["upload", "clipboard"],
                    transforms=(), format="png", image_mode="RGBA", type="pil", fixed_canvas=False, height=430,
                    layers=gr.LayerOptions(allow_additional_layers=False, layers=["mask"]),
                    brush=gr.Brush(default_size=18, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
                    eraser=gr.Eraser(default_size=18), elem_id="inpaint-canvas", buttons=[],
                    value=self._value(str(self.page.examples[0].path)),
                )  # fmt: skip
                with gr.Row(elem_classes="tools"):
                    look = gr.Button(
                        "Show the mask", elem_classes="slim", min_width=120, size="sm", elem_id="inpaint-look"
                    )
                    clear = gr.Button("Clear mask", elem_classes="slim", min_width=110, size="sm")
                    self.form["mask_invert"] = gr.Checkbox(
                        label="Swap inside and outside", container=False, min_width=150
                    )
                self.seen = gr.Image(
                    label="What is made anew", format="png", interactive=False, visible=False, height=240,
                    elem_id="inpaint-seen", elem_classes="stage", buttons=[],
                )  # fmt: skip
                self.form["prompt"] = fields.text(
                    kind, "prompt", label="What appears there", lines=1, info=None, elem_id="inpaint-prompt",
                    placeholder="a blue square on a white background", value="a blue square on a white background",
                )  # fmt: skip
                go, halt = self.begin_row("Inpaint")
                self.form["model"] = model = fields.model_choice(offer, ("image",), "toy-image")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                self.form["variants"] = fields.variants()
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
                        self.form["resample"] = fields.number(
                            "resample", RESAMPLE, info="2 cuts off less, 1 is twice as fast.",
                        )  # fmt: skip
                    self.form["negative_prompt"] = fields.text(kind, "negative_prompt", info=None)
                with gr.Accordion("Attention and LoRA", open=False):
                    choice = fields.attention_choice(str(model.value))
                    self.form["attention"], self.form["attention_args"], self.form["schedule"] = choice
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place(("Before", "After"), self.take_in)
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        clear.click(self._cleared, canvas, [canvas, self.seen], preprocess=False, **quiet)
        asked = [self.page.visitor, *(self.form[name] for name in _MASK)]
        gr.on(
            [canvas.input, *(self.form[name].change for name in _MASK[1:])], lambda: gr.update(visible=False), None,
            self.seen, **quiet,
        )  # fmt: skip
        look.click(self._look, asked, self.seen, preprocess=False, **quiet | QUEUED)
        fields.follow_model(model, self.form["attention"])
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
        return self._value(background), gr.update(visible=False, value=None)

    def _look(self, request: gr.Request, token: str | None, *values: Any) -> Any:
        """The part that would be made anew, as the canvas, the file and the settings of the mask say."""
        visitor = self.page.visitor_of(token, request)
        # Copies that the visitor does not need afterwards.
        with TemporaryDirectory(dir=visitor.folder) as folder:
            scratch = Visitor(visitor.token, Path(folder))
            try:
                sent_values = zip(_MASK, values, strict=True)
                given = {name: received(self.form[name], value, request) for name, value in sent_values}
                image = self._picture(given, scratch)
                picture = read(image, "Picture").pixels
                height, width = picture.shape[:2]
                wanted = InpaintSettings.from_mappings((ORIGIN, self._mask_settings(given, scratch, height, width)))
                mask = read_mask(
                    str(wanted.mask), (height, width), invert=wanted.mask_invert, grow=wanted.mask_grow,
                    feather=wanted.feather,
                )  # fmt: skip
            except GenkitError as error:
                raise refusal(error) from None
        return gr.update(visible=True, value=marked(picture, mask), label=_told(mask))

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        image = self._picture(given, visitor)
        height, width = read(image, "Picture").pixels.shape[:2]
        values |= {"image": str(image), **self._mask_settings(given, visitor, height, width)}
        values |= fields.written(InpaintSettings, given, *_NUMBERS)
        values["negative_prompt"] = text_or_none(given["negative_prompt"])
        values["prompt"] = given["prompt"] if given["prompt"] is not None else ""
        return self.several(InpaintSettings, values, given)

    def take_in(self, path: Path, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Changes of the form that put a result on the canvas."""
        return {self.form["canvas"]: self._value(str(path))}

    def _picture(self, given: Mapping[str, Any], visitor: Visitor) -> Path:
        painted = given["canvas"]
        if not painted or painted["background"] is None:
            raise UsageError("give a picture first: drop or paste one on the canvas")
        return sent(visitor, painted["background"], "Picture", self.page.uploads)

    def _mask_settings(self, given: Mapping[str, Any], visitor: Visitor, height: int, width: int) -> dict[str, Any]:
        """Settings of the mask of a picture of a size."""
        numbers = fields.written(InpaintSettings, given, "mask_grow", "feather")
        invert = bool(given["mask_invert"]) or None
        return numbers | {"mask": str(self._mask(given, visitor, height, width)), "mask_invert": invert}

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


def _told(mask: Mask) -> str:
    """How much is made anew, and how its border is."""
    blended = f", its border blended over {counted(mask.feather, 'pixel')}" if mask.feather else ""
    return f"Made anew: {mask.inside.mean():.1%} of the picture{blended}"
