"""The whole making of toy-dit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from genkit.training.engine.stages import Options
from genkit.training.toys.dit.model import ADAM_NAMES, SHIFT, TEXT_SLOTS, ToyDit
from genkit.training.toys.shared import cards
from genkit.training.toys.shared.assemble import write_folder
from genkit.training.toys.shared.picture_answers import picture_answers
from genkit.training.toys.shared.picture_run import PICTURE
from genkit.training.toys.shared.picture_task import picture_loss
from genkit.training.toys.shared.run import Toy
from genkit.training.toys.shared.starts import add_text_steps, teach_text
from genkit.training.toys.shared.text_order import picture_question

SIDECAR = {
    "description": "A Flux model of the toy world: one to three plain, striped or dotted shapes, 128x128",
    "defaults": {
        "height": 128,
        "width": 128,
        "steps": 20,
        "max_sequence_length": TEXT_SLOTS[-1],
        "negative_prompt": "",
    },
    "limits": {
        "min_height": 64,
        "max_height": 512,
        "min_width": 64,
        "max_width": 512,
        "multiple": 8,
        "max_prompt_tokens": TEXT_SLOTS[-1],
    },
    # Flux's own guidance_scale is for distilled models; this one is guided against the empty prompt.
    "call": {"true_cfg_scale": 2.0},
}


def assemble_toy_dit(model: ToyDit, vae: Any, folder: Path, facts: dict) -> Path:
    """Write the pipeline folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    # A fresh transformer, without the read-out's hook.
    transformer = FluxTransformer2DModel.from_config(model.transformer.config)
    transformer.load_state_dict(model.transformer.state_dict())
    pipeline = FluxPipeline(
        # Fresh noise in every step mends counts and places, as it does for toy-image.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=True),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=model.tokenizer_2,
        transformer=transformer,
    )
    more = {"name": "toy-dit", "script": "toy_dit", "network": "transformer", "more": " --vae runs/toy-image"}
    return write_folder(pipeline, folder, SIDECAR, facts, cards.fill(cards.TOY_DIT, transformer, facts, **more))


def _teach(options: Options, model: ToyDit) -> None:
    """Word order for T5, whose padding Flux reads too."""
    teach_text(options, model.text_encoder_2, model.tokenizer_2, picture_question(), masked=False, slots=TEXT_SLOTS[-1])


TOY = Toy(
    name="toy-dit",
    minutes=230.0,
    tokens=2400,
    build=lambda options, parts: ToyDit(),
    adam_names=ADAM_NAMES,
    loss=partial(picture_loss, shift=SHIFT),
    assemble=lambda model, parts, folder, facts: assemble_toy_dit(model, parts["sharp"], folder, facts),
    teach=_teach,
    answers=lambda options, parts: picture_answers(SHIFT, SIDECAR["call"]["true_cfg_scale"], fresh=1.0),
    more=add_text_steps,
    **PICTURE,
)
MAKING = TOY.making()
