"""The whole making of toy-video, stage after stage; every stage resumes where it was stopped."""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from torch import nn

from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.engine.checkpoint import load_ema
from genkit.training.engine.loop import process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.toys.shared.assemble import assemble_toy_video
from genkit.training.toys.shared.making import Making, Options, newest
from genkit.training.toys.shared.starts import BIAS_FACTOR, add_text_steps, begin, teach_text, weights_folder
from genkit.training.toys.shared.text_order import clip_question
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


def train_vae(options: Options) -> None:
    """Encoder and decoder together; then the latents' statistics."""
    if options.weights or MAKING.finished(options, "vae"):
        return
    module = VideoVae(build_video_vae())
    optimizer = muon_adamw(module.named_parameters(), lr=2e-3)
    config = MAKING.loop(options, "vae", lr=2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    ema = train(module, optimizer, vae_loss(options.seed), config, title="autoencoder")
    if process_rank():
        return
    with ema.applied(module):
        vae = module.to("cpu").vae
        mean, std = measure_latents(vae)
        vae.register_to_config(latents_mean=mean, latents_std=std)
        vae.save_pretrained(options.folder / "vae" / "final")


def _load_vae(options: Options, *stages: str) -> nn.Module:
    from diffusers import AutoencoderKLWan

    if options.weights:
        return AutoencoderKLWan.from_pretrained(weights_folder(options.weights) / "vae", dtype=torch.float32)
    return AutoencoderKLWan.from_pretrained(newest(options.folder, *stages))


def sharpen_decoder(options: Options) -> None:
    """The decoder alone, on latents that stay as they are."""
    if options.weights or MAKING.finished(options, "decoder"):
        return
    module = VideoVae(_load_vae(options, "vae"), frozen=True)
    optimizer = muon_adamw(module.named_parameters(), lr=1.2e-3)
    config = MAKING.loop(options, "decoder", lr=1.2e-3, warmup=20, decay_from=0.2, ema_decay=0.99)
    loss = vae_loss(options.seed + 1, crop=56, noise=0.06, vary=True)
    ema = train(module, optimizer, loss, config, title="decoder")
    if process_rank():
        return
    with ema.applied(module):
        module.to("cpu").vae.save_pretrained(options.folder / "decoder" / "final")


def _teach(options: Options, model: ToyVideo) -> None:
    """Word order for UMT5."""
    teach_text(options, model.text_encoder, model.tokenizer, clip_question())


def train_transformer(options: Options) -> None:
    """Text encoder and transformer on latents."""
    vae = _load_vae(options, "vae").eval().requires_grad_(False)
    model = ToyVideo(vae.config.z_dim)
    lr = options.lr or 1.2e-3
    optimizer = muon_adamw(
        model.named_parameters(), lr, ADAM_NAMES, factors={"relative_attention": BIAS_FACTOR}, weight_decay=0.01
    )
    # A resumed run draws other clips than the first did.
    pool = LatentPool(
        vae,
        np.random.default_rng((options.seed, int(time.time()), process_rank())),
        fresh=0.3,
        two_share=0.6,
        backgrounds=tuple(BACKGROUNDS),
    )
    config = MAKING.loop(
        options, "transformer", lr=lr, warmup=40, decay_from=0.3, ema_decay=0.996, checkpoint_seconds=180
    )
    begin(options, model, config.folder / "checkpoint.pt", _teach)

    def sample(module: nn.Module, step: int) -> None:
        right = probe(module, vae, config.folder, step, ClipSize(17, 128, 128))
        with open(config.folder / "probe.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **right}) + "\n")

    if torch.cuda.is_available():
        vae.to("cuda")
    train(
        model, optimizer, diffusion_loss(pool, model, options.seed + 2, options.tokens), config, sample, "transformer"
    )


def assemble(options: Options) -> None:
    """The averaged weights as a Diffusers folder."""
    if process_rank():
        return
    vae = _load_vae(options, "decoder", "vae")
    model = ToyVideo(vae.config.z_dim)
    load_ema(model, options.folder / "transformer" / "checkpoint.pt")
    target = options.output or options.folder / "model"
    print(f"written: {assemble_toy_video(model, vae, target, MAKING.facts(options))}")


MAKING = Making(
    name="toy-video",
    minutes=170.0,
    tokens=3600,
    main="transformer",
    shares={"vae": 0.17, "decoder": 0.13, "transformer": 0.70},
    more=add_text_steps,
    work={"vae": train_vae, "decoder": sharpen_decoder, "transformer": train_transformer, "assemble": assemble},
)
