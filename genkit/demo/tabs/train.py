"""A LoRA from a few pictures or clips: a small form over ``genkit train lora``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.engine.job import Job, State
from genkit.demo.engine.messages import ORIGIN
from genkit.demo.engine.pictures import CLIPS
from genkit.demo.engine.training import CAPTION, PICTURES, check_name, gather, losses, train
from genkit.demo.engine.visitors import Visitor
from genkit.demo.tabs import fields, show
from genkit.demo.tabs.base import Tab, text_or_none
from genkit.errors import UsageError
from genkit.pipelines.load import resolve_device
from genkit.training.lora.settings import LoraSettings

#: The most that one visitor may ask for: others wait meanwhile.
MOST_STEPS, MOST_RANK = 2000, 128
_NUMBERS = ("max_train_steps", "rank", "learning_rate", "seed")
_USUAL = {"max_train_steps": 200, "rank": 16, "learning_rate": 0.001}


class Train(Tab):
    """The tab."""

    name, title = "train", "Train a LoRA"
    lead = "Teach a model something new from a few pictures or clips, and use it in the other tabs."
    hint = "Drop pictures or clips to begin."

    def build(self) -> None:
        offer, kind = self.page.offer, LoraSettings
        gr.HTML(f'<p class="lead">{self.lead}</p>')
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=300, elem_classes="left"):
                self.form["files"] = gr.File(
                    label="Pictures or clips, and a .txt with the caption of each where they differ",
                    file_count="multiple", file_types=[*PICTURES, *CLIPS, CAPTION], height=190,
                    elem_id="train-files",
                )  # fmt: skip
                self.form["caption"] = fields.text(
                    kind, "caption", label="Caption of all that have no own one", lines=1, info=None,
                    placeholder="a red heart on a white background", elem_id="train-caption",
                )  # fmt: skip
                self.form["lora_name"] = gr.Textbox(
                    label="Name of the LoRA", value="my LoRA", max_lines=1, elem_id="train-name"
                )
                self.form["model"] = fields.model_choice(offer, ("image", "video"), "toy-image")
                go, halt = self.begin_row("Train")
                with gr.Row():
                    for name, usual in _USUAL.items():
                        self.form[name] = fields.number(name, usual)
                self.form["seed"] = fields.number("seed", 0)
            with gr.Column(scale=6, min_width=300, elem_classes="right"):
                self.status()
                self.outputs["loss"] = gr.HTML(
                    '<div class="loss empty">The course of the loss appears here.</div>', elem_id="train-loss"
                )
                self.outputs["file"] = gr.DownloadButton("Download the LoRA", visible=False, elem_id="train-file")
        self.wire(go, halt)

    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Any]:
        name = check_name(given["lora_name"])
        if name in self.page.offer.loras:
            raise UsageError(f"the server has a LoRA called {name}; take another name")
        model = self.page.offer.check_model(given["model"])
        data = gather(visitor, given["files"] or [], self.page.uploads)
        numbers = fields.written(LoraSettings, given, *_NUMBERS)
        wanted = {**_USUAL, **{key: value for key, value in numbers.items() if value is not None}}
        for key, most in (("max_train_steps", MOST_STEPS), ("rank", MOST_RANK)):
            if isinstance(wanted[key], (int, float)) and wanted[key] > most:
                raise UsageError(f"--{key.replace('_', '-')}: got {wanted[key]}, allowed here: up to {most}")
        values = wanted | {
            "model": model, "data": [str(data)], "output": str(data.parent / "lora"),
            "caption": text_or_none(given["caption"]), "device": self.page.offer.device,
            "checkpoints_total_limit": 1,
        }  # fmt: skip
        made = LoraSettings.from_mappings((ORIGIN, values))
        return [(name, {key: value for key, value in values.items() if value is not None}, made)]

    def start(self, visitor: Visitor, wanted: list[Any]) -> Job:
        name, values, _ = wanted[0]
        worker = self.page.desk.worker(str(resolve_device(self.page.offer.device)))
        return self.page.desk.begin(
            visitor, self.name, lambda job: train(job, visitor, worker, name, values), [values["output"]]
        )

    def shown(self, state: State, job: Job) -> dict[str, Any]:
        changes: dict[str, Any] = {"status": show.status(state)}
        rows = losses(Path(job.wanted[0]) / "log.jsonl") if job.wanted else []
        if rows:
            changes["loss"] = show.curve(rows)
        if state.made:
            changes["file"] = gr.update(visible=True, value=str(state.made[0]))
        return changes

    def at_end(self, visitor: Visitor) -> dict[Any, Any]:
        return self.page.lora_choices(visitor)
