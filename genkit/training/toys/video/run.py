"""The whole making of toy-video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.engine.stages import Options
from genkit.training.toys.shared import cards
from genkit.training.toys.shared.assemble import write_folder
from genkit.training.toys.shared.run import AutoencoderStage, Parts, Toy
from genkit.training.toys.shared.starts import add_text_steps, teach_text
from genkit.training.toys.shared.swap_gaps import CLIP_KINDS, clip_errors, swap_gaps
from genkit.training.toys.shared.text_order import clip_question
from genkit.training.toys.video.answers import ANSWERS
from genkit.training.toys.video.given import given_gains
from genkit.training.toys.video.model import ToyVideo, diffusion_loss
from genkit.training.toys.video.probe import probe
from genkit.training.toys.video.vae import VideoVae, build_video_vae, measure_latents, vae_loss
from genkit.world.vocabulary import BACKGROUNDS

ADAM_NAMES = (
    "patch_embedding",
    "proj_out",
    "shared",
    "relative_attention",
    "alignment",
    "time_proj",
    "time_embedder",
)
SIDECAR = {
    "description": "A Wan text-to-video model of the toy world: coloured shapes that move, 128x128 pixels, 3 seconds",
    "defaults": {
        "height": 128,
        "width": 128,
        "num_frames": 25,
        "fps": 8,
        "steps": 20,
        "guidance_scale": 4.0,
        "max_sequence_length": 64,
        "upscale_strength": 0.3,
        "upscale_shift": 4.0,
    },
    "limits": {
        "min_height": 64,
        "max_height": 512,
        "min_width": 64,
        "max_width": 512,
        "multiple": 16,
        "max_frames": 97,
        "frames_multiple": 4,
        "max_prompt_tokens": 64,
    },
    "given_frames": True,
}
FLOW_SHIFT = 3.0


def assemble_toy_video(model: nn.Module, vae: Any, folder: Path, facts: dict) -> Path:
    """Put toy-video together and write its folder.

    Args:
        model: a :class:`genkit.training.toys.video.model.ToyVideo` holding the weights to ship.
        vae: its video autoencoder.
        folder: where the model goes; an existing folder is replaced once the new one is whole.
        facts: stored as ``training.json``.

    Returns:
        The folder.
    """
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel.from_config(model.transformer.config)
    transformer.load_state_dict(model.transformer.state_dict())
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )
    pipeline = WanPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    return write_folder(pipeline, folder, SIDECAR, facts, cards.fill(cards.TOY_VIDEO, transformer, facts))


def _standardise(vae: Any) -> None:
    mean, std = measure_latents(vae)
    vae.register_to_config(latents_mean=mean, latents_std=std)


def _pool(options: Options, parts: Parts, rng: np.random.Generator) -> LatentPool:
    return LatentPool(parts["vae"], rng, fresh=0.3, two_share=0.6, backgrounds=tuple(BACKGROUNDS), ends=True)


def _look(model: nn.Module, options: Options, parts: Parts, folder: Path, step: int) -> dict[str, float]:
    right = probe(model, parts["vae"], folder, step, ClipSize(17, 128, 128))
    pairs = LatentPool(parts["vae"], np.random.default_rng(1), two_share=1.0)
    gaps = swap_gaps(pairs, ClipSize(9, 96, 96), clip_errors(model), CLIP_KINDS, count=32)
    ended = LatentPool(parts["vae"], np.random.default_rng(2), ends=True)
    gains = given_gains(model, ended, ClipSize(17, 96, 96))
    return right | {f"swap {name}": value for name, value in gaps.items()} | {f"given {k}": v for k, v in gains.items()}


def _teach(options: Options, model: ToyVideo) -> None:
    """Word order for UMT5."""
    teach_text(options, model.text_encoder, model.tokenizer, clip_question())


TOY = Toy(
    name="toy-video",
    minutes=170.0,
    tokens=3600,
    main="transformer",
    shares={"vae": 0.17, "decoder": 0.08, "transformer": 0.68, "answers": 0.07},
    classes={"vae": "AutoencoderKLWan"},
    autoencoders=(
        AutoencoderStage(
            "vae",
            "autoencoder",
            wrap=lambda _: VideoVae(build_video_vae()),
            loss=vae_loss,
            finish=_standardise,
        ),
        AutoencoderStage(
            "decoder",
            "decoder",
            wrap=lambda vae: VideoVae(vae, frozen=True),
            loss=lambda seed: vae_loss(seed + 1, crop=56, noise=0.06, vary=True),
            after="vae",
            lr=1.2e-3,
        ),
    ),
    build=lambda options, parts: ToyVideo(parts["vae"].config.z_dim),
    adam_names=ADAM_NAMES,
    pool=_pool,
    loss=diffusion_loss,
    look=_look,
    assemble=lambda model, parts, folder, facts: assemble_toy_video(model, parts["sharp"], folder, facts),
    teach=_teach,
    answers=lambda options, parts: ANSWERS,
    more=add_text_steps,
)
MAKING = TOY.making()
