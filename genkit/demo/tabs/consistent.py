"""The same subjects in several pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.visitors import Visitor
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.errors import UsageError, counted, explain
from genkit.pipelines.request import Settings
from genkit.pipelines.tasks.consistent.settings import ConsistentSettings

#: Scenes of one run.
MOST_SCENES = 6
_NUMBERS = ("steps", "guidance_scale", "width", "height", "dropout", "text_share", "start", "seed")
_USUAL = ConsistentSettings()
#: Subjects and scenes that leave open what is to stay the same: texture and size.
EXAMPLES = (
    ("a red circle", ("white", "blue", "gray", "black")),
    ("a green triangle", ("white", "purple", "yellow", "black")),
)


def _scenes(subject: str, backgrounds: tuple[str, ...]) -> str:
    return "\n".join(f"{subject} on a {each} background" for each in backgrounds)


#: Settings with a line for each subject, by the name of their control.
_LINES = {"subjects": "subject", "keywords": "keyword", "boxes": "box"}


class Consistent(Tab):
    """The tab."""

    name, title = "consistent", "Consistent"
    kind, held = ConsistentSettings, ("prompt", "scene", *_LINES.values())
    lead = "Make several pictures in which the same subjects appear and stay themselves."
    hint = "Every line of the scenes becomes a picture."

    def build(self) -> None:
        offer, kind = self.page.offer, ConsistentSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["subjects"] = fields.text(
                    kind, "subject", label="Who appears, one a line", lines=1, max_lines=4, info=None,
                    value=EXAMPLES[0][0], placeholder="a red circle", elem_id="consistent-subjects",
                )  # fmt: skip
                self.form["scenes"] = fields.text(
                    kind, "scene", label="Scenes, one a line", lines=4, max_lines=MOST_SCENES,
                    info="Each is a picture, and names its subjects in the same words.", elem_id="consistent-scenes",
                    value=_scenes(*EXAMPLES[0]),
                )  # fmt: skip
                self.form["keywords"] = fields.text(
                    kind, "keyword", label="Words that name them in the scenes, one a line", lines=1, max_lines=4,
                    placeholder="as above, without a or the", elem_id="consistent-keywords",
                    info="Where a scene names a subject in short: a red circle for a striped red circle.",
                )  # fmt: skip
                go, halt = self.begin_row("Make the pictures")
                self.form["model"] = fields.model_choice(offer, ("image",), "toy-image")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                with gr.Accordion("More settings", open=False):
                    self.form["boxes"] = fields.text(
                        kind, "box", label="Where they are, one a line", lines=1, max_lines=4,
                        placeholder="0,0.2,0.5,0.9", info="Left, top, right, bottom as shares of the picture, or auto: "
                        "found by a rehearsal.",
                    )  # fmt: skip
                    with gr.Row():
                        self.form["dropout"] = fields.number("dropout", _USUAL.dropout, info="Less is more alike.")
                        self.form["text_share"] = fields.number(
                            "text_share", _USUAL.text_share, info="How far its own words count."
                        )
                        self.form["start"] = fields.number(
                            "start", "0.35, in a box 0", info="Share of the steps before."
                        )
                    with gr.Row():
                        self.form["isolation"] = gr.Checkbox(
                            value=True, label="Keep subjects from reading each other", container=False, min_width=200
                        )
                        self.form["reposition"] = gr.Checkbox(
                            value=True, label="Let subjects read their portraits", container=False, min_width=200
                        )
                    with gr.Row():
                        for name in ("steps", "guidance_scale", "width", "height"):
                            self.form[name] = fields.number(name, "own")
                    self.form["negative_prompt"] = fields.text(kind, "negative_prompt", info=None)
                with gr.Accordion("LoRA", open=False):
                    self.form["lora"], self.form["lora_strength"] = fields.lora_choice(offer)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place()
        if "toy-image" in offer.models:
            gr.Examples(
                [[subject, _scenes(subject, grounds)] for subject, grounds in EXAMPLES],
                [self.form["subjects"], self.form["scenes"]], label="Try one",
                example_labels=[f"{subject}, {counted(len(grounds), 'scene')}" for subject, grounds in EXAMPLES],
            )  # fmt: skip
        self.wire(go, halt)

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        values = self.common(given, visitor)
        subjects, scenes = lines("Who appears", given["subjects"]), lines("Scenes", given["scenes"])
        if not scenes:
            raise UsageError("write at least one scene, one a line; each is a picture")
        if len(scenes) > MOST_SCENES:
            raise UsageError(
                f"{counted(len(scenes), 'scene is', 'scenes are')} too many for one run; at most {MOST_SCENES}"
            )
        values |= fields.written(ConsistentSettings, given, *_NUMBERS)
        values |= {"subject": subjects, "box": lines("Where they are", given["boxes"])}
        values["keyword"] = lines("Words that name them", given["keywords"])
        values |= {name: given[name] for name in ("isolation", "reposition")}
        values["negative_prompt"] = text_or_none(given["negative_prompt"])
        if not values["reposition"]:
            values["dropout"] = None
        return [ConsistentSettings.from_mappings((ORIGIN, values | {"prompt": scene})) for scene in scenes]

    def fill(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        found = super().fill(settings)
        for name, of in _LINES.items():
            found[name] = "\n".join(settings.get(of) or ())
        return found | {"scenes": settings.get("prompt")}


def lines(what: str, text: Any) -> tuple[str, ...]:
    """The lines of a box that say something, each once.

    Raises:
        UsageError: no text.
    """
    if text is None:
        return ()
    if not isinstance(text, str):
        raise UsageError(explain(what, text, "text, one a line"))
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
