"""The whole making of toy-image and of its inpainting variant."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from genkit.training.engine.stages import Options
from genkit.training.toys.image.model import ADAM_NAMES, LATENT_CHANNELS, ToyImage
from genkit.training.toys.shared import cards
from genkit.training.toys.shared.answers import Answers
from genkit.training.toys.shared.assemble import write_folder
from genkit.training.toys.shared.picture_answers import picture_answers
from genkit.training.toys.shared.picture_run import PICTURE
from genkit.training.toys.shared.picture_task import picture_loss
from genkit.training.toys.shared.run import Parts, Toy

SIDECAR = {
    "description": "A Stable Diffusion model of the toy world: one to three plain, striped or dotted shapes, 128x128",
    "defaults": {"height": 128, "width": 128, "steps": 20, "guidance_scale": 4.0},
    "limits": {
        "min_height": 64,
        "max_height": 512,
        "min_width": 64,
        "max_width": 512,
        "multiple": 16,
        "max_prompt_tokens": 77,
    },
    # Fresh noise in every step mends a layout that began wrong. With 1.0, DDIM's root of a difference that should be
    # zero is NaN at some step counts.
    "call": {"eta": 0.95},
}


def assemble_toy_image(model: ToyImage, vae: Any, folder: Path, facts: dict) -> Path:
    """Write the pipeline folder, of the inpainting pipeline where the UNet has nine channels."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel

    # A fresh UNet, without the read-out's hook.
    unet = UNet2DConditionModel.from_config(model.unet.config)
    unet.load_state_dict(model.unet.state_dict())
    inpaint = unet.config.in_channels > LATENT_CHANNELS
    pipeline = (StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline)(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if inpaint:
        description = SIDECAR["description"] + ", for painting masked parts anew"
        return write_folder(pipeline, folder, {**SIDECAR, "description": description}, facts | {"inpaint": True})
    more = {"name": "toy-image", "script": "toy_image", "network": "UNet", "more": ""}
    return write_folder(pipeline, folder, SIDECAR, facts, cards.fill(cards.TOY_IMAGE, unet, facts, **more))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inpaint", action="store_true", help="the nine-channel UNet that repaints a masked part")


def _answers(options: Options, parts: Parts) -> Answers | None:
    """As it is sampled; the nine-channel UNet, which asks for masks, takes toy-image's decoder by ``--vae``."""
    return None if options.inpaint else picture_answers(1.0, 4.0, SIDECAR["call"]["eta"], levels=(0.1, 0.4))


TOY = Toy(
    name="toy-image",
    minutes=120.0,
    tokens=3600,
    build=lambda options, parts: ToyImage(options.inpaint),
    adam_names=ADAM_NAMES,
    loss=partial(picture_loss, shift=1.5),
    assemble=lambda model, parts, folder, facts: assemble_toy_image(model, parts["sharp"], folder, facts),
    answers=_answers,
    more=_options,
    **PICTURE,
)
MAKING = TOY.making()
