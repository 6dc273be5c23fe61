"""The whole making of toy-av."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from genkit.training.engine.stages import Options
from genkit.training.toys.av.answers import sounding_answers
from genkit.training.toys.av.model import ADAM_NAMES, ToyAv, av_loss
from genkit.training.toys.av.parts import build_audio_vae, build_av_video_vae, build_vocoder
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.av.probe import sound_probe
from genkit.training.toys.av.vae import AudioVae, AvVideoVae, spectrum_loss, standardise_clips, standardise_sounds
from genkit.training.toys.shared import cards
from genkit.training.toys.shared.assemble import write_folder
from genkit.training.toys.shared.run import AutoencoderStage, Parts, Toy
from genkit.training.toys.video.vae import vae_loss

FLOW_SHIFT = 4.0
SIDECAR: dict[str, Any] = {
    "description": "An LTX-2 model of the toy world: moving shapes and the sound of what they do, 128x128, 3 seconds",
    "defaults": {
        "height": 128,
        "width": 128,
        "num_frames": 25,
        "fps": 8,
        "steps": 20,
        "guidance_scale": 4.0,
        "max_sequence_length": 64,
    },
    "limits": {
        "min_height": 64,
        "max_height": 256,
        "min_width": 64,
        "max_width": 256,
        "multiple": 32,
        "max_frames": 49,
        "frames_multiple": 4,
        "max_prompt_tokens": 64,
    },
    # Guidance by the prompt alone, rescaled: else colours overshoot into halos of their opposites. Both of a pair are
    # named: the pipeline takes 0 for the sound as "like the video".
    "call": {
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
        "guidance_rescale": 0.7,
        "audio_guidance_rescale": 0.7,
        "audio_guidance_scale": None,
        "spatio_temporal_guidance_blocks": None,
        "use_cross_timestep": True,
    },
    "sound": "tones",
}


def build_pipeline(model: ToyAv, vae: Any, audio_vae: Any, transformer: nn.Module | None = None) -> Any:
    """An ``LTX2Pipeline`` of a model in training, sharing its modules."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        connectors=model.connectors,
        transformer=transformer or model.transformer,
        vocoder=build_vocoder(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assemble_toy_av(model: ToyAv, vae: Any, audio_vae: Any, folder: Path, facts: dict) -> Path:
    """Put toy-av together and write its folder.

    Args:
        model: holding the weights to ship.
        vae, audio_vae: its autoencoders.
        folder: where the model goes; an existing folder is replaced once the new one is whole.
        facts: stored as ``training.json``.
    """
    from diffusers import LTX2VideoTransformer3DModel

    # A fresh transformer, without the read-outs' hooks.
    transformer = LTX2VideoTransformer3DModel.from_config(model.transformer.config)
    transformer.load_state_dict(model.transformer.state_dict())
    card = cards.fill(cards.TOY_AV, transformer, facts)
    return write_folder(build_pipeline(model, vae, audio_vae, transformer), folder, SIDECAR, facts, card)


def _pool(options: Options, parts: Parts, rng: np.random.Generator) -> SoundPool:
    return SoundPool(parts["vae"], rng, fresh=0.08, audio_vae=parts["audio_vae"])


def _look(model: ToyAv, options: Options, parts: Parts, folder: Path, step: int) -> dict[str, float]:
    pipeline = build_pipeline(model, parts["sharp"], parts["audio_vae"])
    pipeline.vocoder.to(next(model.parameters()).device)
    return sound_probe(pipeline, SIDECAR["call"], folder / f"sheet-{step:06d}.png")


TOY = Toy(
    name="toy-av",
    minutes=240.0,
    tokens=3600,
    main="transformer",
    shares={"vae": 0.14, "decoder": 0.08, "sound": 0.06, "transformer": 0.65, "answers": 0.07},
    classes={"vae": "AutoencoderKLLTX2Video", "audio_vae": "AutoencoderKLLTX2Audio"},
    autoencoders=(
        AutoencoderStage(
            "vae",
            "video autoencoder",
            wrap=lambda _: AvVideoVae(build_av_video_vae()),
            loss=vae_loss,
            finish=standardise_clips,
        ),
        AutoencoderStage(
            "decoder",
            "decoder",
            wrap=lambda vae: AvVideoVae(vae, frozen=True),
            loss=lambda seed: vae_loss(seed + 1, crop=64, noise=0.06, vary=True),
            after="vae",
            lr=1.2e-3,
        ),
        AutoencoderStage(
            "sound",
            "audio autoencoder",
            wrap=lambda _: AudioVae(build_audio_vae()),
            loss=spectrum_loss,
            part="audio_vae",
            finish=standardise_sounds,
        ),
    ),
    build=lambda options, parts: ToyAv(),
    adam_names=ADAM_NAMES,
    pool=_pool,
    loss=av_loss,
    look=_look,
    answers=lambda options, parts: sounding_answers(
        parts["audio_vae"], FLOW_SHIFT, SIDECAR["defaults"]["guidance_scale"], SIDECAR["call"]["guidance_rescale"]
    ),
    assemble=lambda model, parts, folder, facts: assemble_toy_av(
        model, parts["sharp"], parts["audio_vae"], folder, facts
    ),
)
MAKING = TOY.making()
