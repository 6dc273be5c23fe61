"""A video that goes on: frames are shown as they are made, and another prompt takes over while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genkit.demo.engine.job import Job
from genkit.demo.engine.live import check_room, live
from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import defaults_of, has_fast
from genkit.demo.tabs import fields
from genkit.demo.tabs.base import Tab, refusal
from genkit.errors import GenkitError, UsageError, explain
from genkit.pipelines.load import resolve_device
from genkit.pipelines.settings import GenerateSettings

EXAMPLE = "a red circle bounces on a blue background"
FRAMES = 97
_NUMBERS = ("num_frames", "steps", "guidance_scale", "seed")


class Live(Tab):
    """The tab."""

    name, title = "live", "Live"
    lead = "Watch a video while it is made, and change what it shows as it goes on."
    refresh = 0.1

    def build(self) -> None:
        kind = GenerateSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["prompt"] = fields.text(
                    kind, "prompt", lines=2, max_lines=5, info=None, value=EXAMPLE, placeholder=EXAMPLE,
                    elem_id="live-prompt",
                )  # fmt: skip
                self.form["model"] = model = fields.model_choice(self.page.offer, ("video",), "toy-video")
                go, halt = self.begin_row("Begin")
                self.form["seed"], self.form["keep_seed"] = fields.seed_row()
                self.form["fast"] = gr.Checkbox(
                    value=False, label="Fast", info="Few steps without guidance, by the model's own LoRA for it: "
                    "frames come about as quickly as they are shown.",
                    visible=has_fast(str(model.value)), elem_id="live-fast",
                )  # fmt: skip
                with gr.Row():
                    self.form["num_frames"] = fields.number("num_frames", FRAMES)
                    for name in ("steps", "guidance_scale"):
                        self.form[name] = fields.number(name, defaults_of(str(model.value)).get(name))
                following = gr.Textbox(
                    label="What it shows next", placeholder="a green square moves left on a blue background",
                    info="In force from the next frames on, while the video is made.", elem_id="live-next",
                )  # fmt: skip
                with gr.Row(elem_classes="tools"):
                    say = gr.Button("From now on", elem_id="live-say", size="md", elem_classes="slim")
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.place()
        model.change(
            lambda name: gr.update(visible=has_fast(name)), model, self.form["fast"], queue=False,
            api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        gr.on(
            [say.click, following.submit], self._say, [self.page.visitor, following], following, queue=True,
            concurrency_limit=None, api_name="live_next", show_progress="hidden",
            api_description="Change the prompt of the video that is being made.",
        )  # fmt: skip
        self.wire(go, halt, self.form["prompt"].submit, cut=False)

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Any]:
        from genkit.pipelines.resolve import resolve

        values = self.common(given, visitor) | fields.written(GenerateSettings, given, *_NUMBERS)
        # Hidden for models without such a LoRA; a tick from the model before stays there.
        values["fast"] = given["fast"] if has_fast(values["model"]) else False
        values["num_frames"] = FRAMES if values["num_frames"] is None else values["num_frames"]
        wanted: Any = GenerateSettings.from_mappings(
            (ORIGIN, {**values, "prompt": given["prompt"] or "", "stream": True})
        )
        check_room(resolve(wanted))
        return [wanted]

    def start(self, visitor: Visitor, wanted: list[Any]) -> Job:
        worker = self.page.desk.worker(str(resolve_device(self.page.offer.device)))
        return self.page.desk.begin(visitor, self.name, lambda job: live(job, visitor, worker, wanted[0]), wanted)

    def _say(self, request: gr.Request, token: str | None, text: str | None) -> Any:
        """Hand a prompt to the stream that runs; the box is empty again when it is taken."""
        from genkit.pipelines.resolve import resolve

        job = self.page.visitor_of(token, request).job
        try:
            if job is None or job.tab != self.name or job.state.ended:
                raise UsageError("no video is being made here: press Begin first")
            if not isinstance(text, str) or not text.strip():
                raise UsageError(explain("prompt", text, "a sentence"))
            resolve(job.wanted[0].replace(prompt=text))
        except GenkitError as error:
            raise refusal(error) from None
        job.say(text)
        gr.Info("In force from the next frames on.", duration=3)
        return ""
