"""The making of the image models, stage after stage; what toy-image and toy-dit have in common."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from genkit.training.data.world.pictures import PicturePool, PictureSize
from genkit.training.engine.checkpoint import load_ema
from genkit.training.engine.loop import process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.toys.shared.making import Making, Options, newest
from genkit.training.toys.shared.picture_task import picture_loss, picture_probe
from genkit.training.toys.shared.picture_vae import PictureVae, build_picture_vae, picture_vae_loss, standardise_latents
from genkit.training.toys.shared.starts import BIAS_FACTOR, begin, weights_folder
from genkit.world.vocabulary import BACKGROUNDS

SHARES = {"vae": 0.10, "decoder": 0.06, "denoiser": 0.84}


def picture_making(
    name: str,
    minutes: float,
    build: Callable[[Options], nn.Module],
    adam_names: tuple[str, ...],
    assemble: Callable[[nn.Module, nn.Module, Path, dict], Path],
    shift: float,
    tokens: int = 3600,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
    prepare: Callable[[Options, nn.Module], None] | None = None,
) -> Making:
    """The plan of an image model.

    Args:
        name: of the model.
        minutes: default training time in all.
        build: the model of :mod:`genkit.training.toys.shared.picture_task` for the options.
        adam_names: parts of parameters' names that Muon leaves to AdamW.
        assemble: called with (model, vae, folder, facts), writes the Diffusers folder.
        shift: of the noise levels in training.
        tokens: default number per step.
        more: adds the model's own options.
        prepare: called with (options, model) before the first step of the denoiser.
    """

    def options_of(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--vae", type=Path, help="folder of a run whose finished autoencoder is taken")
        if more:
            more(parser)

    def vae(options: Options) -> None:
        if options.vae is None and options.weights is None:
            train_vae(making, options)

    def decoder(options: Options) -> None:
        if options.vae is None and options.weights is None:
            sharpen_decoder(making, options)

    def denoiser(options: Options) -> None:
        model = build(options)
        train_denoiser(making, options, model, adam_names, shift, prepare)

    def finish(options: Options) -> None:
        if process_rank():
            return
        model = build(options)
        load_ema(model, options.folder / "denoiser" / "checkpoint.pt")
        target = options.output or options.folder / "model"
        print(f"written: {assemble(model, load_vae(options, 'decoder', 'vae'), target, making.facts(options))}")

    making = Making(
        name=name,
        minutes=minutes,
        tokens=tokens,
        main="denoiser",
        shares=SHARES,
        work={"vae": vae, "decoder": decoder, "denoiser": denoiser, "assemble": finish},
        more=options_of,
    )
    return making


def load_vae(options: Options, *stages: str) -> nn.Module:
    """The newest finished autoencoder of this run, of ``--vae``'s run, or that of the model of ``--weights``."""
    from diffusers import AutoencoderKL

    if options.weights:
        return AutoencoderKL.from_pretrained(weights_folder(options.weights) / "vae", dtype=torch.float32)
    return AutoencoderKL.from_pretrained(newest(options.vae or options.folder, *stages))


def train_vae(making: Making, options: Options) -> None:
    """Encoder and decoder together; then the latents are standardised."""
    if making.finished(options, "vae"):
        return
    module = PictureVae(build_picture_vae())
    optimizer = muon_adamw(module.named_parameters(), lr=2e-3)
    config = making.loop(options, "vae", lr=2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    ema = train(module, optimizer, picture_vae_loss(options.seed), config, title="autoencoder")
    if process_rank():
        return
    with ema.applied(module):
        module.to("cpu")
        standardise_latents(module.vae)
        module.vae.save_pretrained(options.folder / "vae" / "final")


def sharpen_decoder(making: Making, options: Options) -> None:
    """The decoder alone, on latents that stay as they are."""
    if making.finished(options, "decoder"):
        return
    module = PictureVae(load_vae(options, "vae"), frozen=True)
    optimizer = muon_adamw(module.named_parameters(), lr=1.2e-3)
    config = making.loop(options, "decoder", lr=1.2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    loss = picture_vae_loss(options.seed + 1, crop=64, noise=0.08, vary=True)
    ema = train(module, optimizer, loss, config, title="decoder")
    if process_rank():
        return
    with ema.applied(module):
        module.to("cpu").vae.save_pretrained(options.folder / "decoder" / "final")


def train_denoiser(
    making: Making,
    options: Options,
    model: nn.Module,
    adam_names: tuple[str, ...],
    shift: float,
    prepare: Callable[[Options, nn.Module], None] | None = None,
) -> None:
    """Text encoders and denoiser together, on latents."""
    vae = load_vae(options, "vae").eval().requires_grad_(False)
    sharp = load_vae(options, "decoder", "vae").eval().requires_grad_(False)
    lr = options.lr or 1.2e-3
    optimizer = muon_adamw(
        model.named_parameters(), lr, adam_names, factors={"relative_attention": BIAS_FACTOR}, weight_decay=0.01
    )
    inpaint = getattr(options, "inpaint", False)
    # A resumed run draws other pictures than the first did.
    rng = np.random.default_rng((options.seed, int(time.time()), process_rank()))
    pool = PicturePool(vae, rng, fresh=0.3, inpaint=inpaint, backgrounds=tuple(BACKGROUNDS))
    config = making.loop(options, "denoiser", lr=lr, warmup=40, decay_from=0.3, ema_decay=0.996, checkpoint_seconds=180)
    begin(options, model, config.folder / "checkpoint.pt", prepare)
    if torch.cuda.is_available():
        vae.to("cuda")
        sharp.to("cuda")
    looked_at = PicturePool(sharp, rng, inpaint=inpaint)

    def sample(module: nn.Module, step: int) -> None:
        right = picture_probe(module, looked_at, config.folder, step, PictureSize(128, 128))
        with open(config.folder / "probe.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **right}) + "\n")

    loss = picture_loss(pool, model, options.seed + 2, options.tokens, shift)
    train(model, optimizer, loss, config, sample, making.name)
