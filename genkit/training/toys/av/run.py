"""The whole making of toy-av, stage after stage; every stage resumes where it was stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.training.engine.checkpoint import load_ema
from genkit.training.engine.loop import process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.engine.warm_start import begin_from
from genkit.training.toys.av.model import ADAM_NAMES, ToyAv, av_loss
from genkit.training.toys.av.parts import build_audio_vae, build_av_video_vae, build_vocoder
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.av.probe import sound_probe
from genkit.training.toys.av.vae import AudioVae, AvVideoVae, spectrum_loss, standardise_clips, standardise_sounds
from genkit.training.toys.shared import cards
from genkit.training.toys.shared.assemble import write_folder
from genkit.training.toys.shared.making import Making, Options, newest
from genkit.training.toys.video.vae import vae_loss

FLOW_SHIFT = 4.0
SIDECAR = {
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


def train_vae(options: Options) -> None:
    """The video's encoder and decoder together; then the latents' statistics."""
    if MAKING.finished(options, "vae"):
        return
    module = AvVideoVae(build_av_video_vae())
    optimizer = muon_adamw(module.named_parameters(), lr=2e-3)
    config = MAKING.loop(options, "vae", lr=2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    ema = train(module, optimizer, vae_loss(options.seed), config, title="video autoencoder")
    if process_rank():
        return
    with ema.applied(module):
        vae = module.to("cpu").vae
        standardise_clips(vae)
        vae.save_pretrained(options.folder / "vae" / "final")


def load_video_vae(options: Options, *stages: str) -> nn.Module:
    """The newest finished video autoencoder among the given stages."""
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video.from_pretrained(newest(options.folder, *stages))


def load_audio_vae(options: Options) -> nn.Module:
    """The finished audio autoencoder."""
    from diffusers import AutoencoderKLLTX2Audio

    return AutoencoderKLLTX2Audio.from_pretrained(newest(options.folder, "sound"))


def sharpen_decoder(options: Options) -> None:
    """The video's decoder alone, on latents that stay as they are."""
    if MAKING.finished(options, "decoder"):
        return
    module = AvVideoVae(load_video_vae(options, "vae"), frozen=True)
    optimizer = muon_adamw(module.named_parameters(), lr=1.2e-3)
    config = MAKING.loop(options, "decoder", lr=1.2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    loss = vae_loss(options.seed + 1, crop=64, noise=0.06, vary=True)
    ema = train(module, optimizer, loss, config, title="decoder")
    if process_rank():
        return
    with ema.applied(module):
        module.to("cpu").vae.save_pretrained(options.folder / "decoder" / "final")


def train_sound(options: Options) -> None:
    """The audio autoencoder; then its statistics."""
    if MAKING.finished(options, "sound"):
        return
    module = AudioVae(build_audio_vae())
    optimizer = muon_adamw(module.named_parameters(), lr=2e-3)
    config = MAKING.loop(options, "sound", lr=2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    ema = train(module, optimizer, spectrum_loss(options.seed), config, title="audio autoencoder")
    if process_rank():
        return
    with ema.applied(module):
        vae = module.to("cpu").vae
        standardise_sounds(vae)
        vae.save_pretrained(options.folder / "sound" / "final")


def build_pipeline(model: ToyAv, vae: nn.Module, audio_vae: nn.Module, transformer: nn.Module | None = None) -> Any:
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


def train_transformer(options: Options) -> None:
    """Text encoder, connectors and transformer on latents of clips and sounds."""
    vae = load_video_vae(options, "vae").eval().requires_grad_(False)
    sharp = load_video_vae(options, "decoder", "vae").eval().requires_grad_(False)
    audio_vae = load_audio_vae(options).eval().requires_grad_(False)
    model = ToyAv()
    optimizer = muon_adamw(model.named_parameters(), lr=1.2e-3, adam_names=ADAM_NAMES, weight_decay=0.01)
    # A resumed run draws other clips than the first did.
    rng = np.random.default_rng((options.seed, int(time.time()), process_rank()))
    pool = SoundPool(vae, rng, fresh=0.08, audio_vae=audio_vae)
    config = MAKING.loop(
        options, "transformer", lr=1.2e-3, warmup=40, decay_from=0.3, ema_decay=0.996, checkpoint_seconds=180
    )
    begin_from(options.start_from, model, config.folder / "checkpoint.pt")
    if torch.cuda.is_available():
        for part in (vae, sharp, audio_vae):
            part.to("cuda")

    def sample(module: nn.Module, step: int) -> None:
        pipeline = build_pipeline(module, sharp, audio_vae)
        pipeline.vocoder.to(next(module.parameters()).device)
        right = sound_probe(pipeline, SIDECAR["call"], config.folder / f"sheet-{step:06d}.png")
        with open(config.folder / "probe.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **right}) + "\n")

    train(model, optimizer, av_loss(pool, model, options.seed + 2, options.tokens), config, sample, "transformer")


def assemble(options: Options) -> None:
    """The averaged weights as a Diffusers folder."""
    if process_rank():
        return
    model = ToyAv()
    load_ema(model, options.folder / "transformer" / "checkpoint.pt")
    target = options.output or options.folder / "model"
    vae, audio_vae = load_video_vae(options, "decoder", "vae"), load_audio_vae(options)
    print(f"written: {assemble_toy_av(model, vae, audio_vae, target, MAKING.facts(options))}")


def assemble_toy_av(model: ToyAv, vae: nn.Module, audio_vae: nn.Module, folder: Path, facts: dict) -> Path:
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


MAKING = Making(
    name="toy-av",
    minutes=240.0,
    tokens=3600,
    main="transformer",
    shares={"vae": 0.14, "decoder": 0.08, "sound": 0.06, "transformer": 0.72},
    work={
        "vae": train_vae,
        "decoder": sharpen_decoder,
        "sound": train_sound,
        "transformer": train_transformer,
        "assemble": assemble,
    },
)
