"""The whole making of toy-video, stage after stage; every stage resumes where it was stopped."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from genkit.errors import UsageError
from genkit.training.assemble import assemble_toy_video
from genkit.training.latent_pool import ClipSize, LatentPool
from genkit.training.loop import LoopConfig, atomic_save, load_checkpoint, process_rank, train, wait_for_all
from genkit.training.optim import muon_adamw
from genkit.training.probe import probe
from genkit.training.toy_video import ToyVideo, diffusion_loss
from genkit.training.video_vae import VideoVae, build_video_vae, measure_latents, vae_loss

STAGES = ("vae", "decoder", "transformer", "assemble")
# Parts of the whole budget.
SHARES = {"vae": 0.17, "decoder": 0.13, "transformer": 0.70}
ADAM_NAMES = (
    "patch_embedding",
    "proj_out",
    "shared",
    "relative_attention",
    "alignment",
    "time_proj",
    "time_embedder",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``scripts/train_toy_video.py``."""
    parser.add_argument("--folder", type=Path, default=Path("runs/toy-video"), help="checkpoints, logs and sheets")
    parser.add_argument("--output", type=Path, help="where the finished model goes (default: FOLDER/model)")
    parser.add_argument("--minutes", type=float, default=170.0, help="training time in all (default 170)")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--tokens", type=int, default=3600, help="latent tokens per step and process; more on a GPU")
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint.pt of an earlier transformer run to go on from, with a new budget"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads (default: what torch chooses)")
    parser.add_argument("--sample-minutes", type=float, default=13.0, help="pause between sample sheets; 0 for none")


def run(options: argparse.Namespace) -> None:
    """Run the stages that are asked for and not finished yet."""
    if options.minutes <= 0 or options.tokens < 100:
        raise UsageError(
            f"--minutes must be above 0 and --tokens at least 100, got {options.minutes} and {options.tokens}"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.start_from and options.start_from.resolve() == (options.folder / "transformer/checkpoint.pt").resolve():
        raise UsageError("--start-from names this run's own checkpoint, which it goes on from anyway: leave it out")
    work = {"vae": train_vae, "decoder": sharpen_decoder, "transformer": train_transformer, "assemble": assemble}
    for name in STAGES if options.stage == "all" else (options.stage,):
        work[name](options)
        wait_for_all()


def _loop(options: argparse.Namespace, stage: str, **more) -> LoopConfig:
    return LoopConfig(
        folder=options.folder / stage,
        seconds=60 * options.minutes * SHARES[stage],
        sample_seconds=60 * options.sample_minutes,
        **more,
    )


def _finished(options: argparse.Namespace, stage: str) -> bool:
    """Whether a stage has used up its budget and written its result."""
    folder = options.folder / stage
    if not (folder / "final").exists() or not (folder / "checkpoint.pt").exists():
        return False
    return load_checkpoint(folder / "checkpoint.pt")["seconds"] >= 60 * options.minutes * SHARES[stage]


def train_vae(options: argparse.Namespace) -> None:
    """Encoder and decoder together; then the latents' statistics."""
    if _finished(options, "vae"):
        return
    module = VideoVae(build_video_vae())
    optimizer = muon_adamw(module.named_parameters(), lr=2e-3)
    config = _loop(options, "vae", lr=2e-3, warmup=20, decay_from=0.2, average=0.99)
    average = train(module, optimizer, vae_loss(options.seed), config, title="autoencoder")
    if process_rank():
        return
    with average.applied(module):
        vae = module.to("cpu").vae
        mean, std = measure_latents(vae)
        vae.register_to_config(latents_mean=mean, latents_std=std)
        vae.save_pretrained(options.folder / "vae" / "final")


def _load_vae(options: argparse.Namespace, *stages: str) -> nn.Module:
    """The newest finished autoencoder among the given stages."""
    from diffusers import AutoencoderKLWan

    for stage in stages:
        folder = options.folder / stage / "final"
        if folder.exists():
            return AutoencoderKLWan.from_pretrained(folder)
    raise UsageError(f"no finished autoencoder in {options.folder}: run --stage vae first")


def sharpen_decoder(options: argparse.Namespace) -> None:
    """The decoder alone, on latents that stay as they are."""
    if _finished(options, "decoder"):
        return
    module = VideoVae(_load_vae(options, "vae"), frozen=True)
    optimizer = muon_adamw(module.named_parameters(), lr=1.2e-3)
    config = _loop(options, "decoder", lr=1.2e-3, warmup=20, decay_from=0.2, average=0.99)
    loss = vae_loss(options.seed + 1, crop=56, noise=0.06, vary=True)
    average = train(module, optimizer, loss, config, title="decoder")
    if process_rank():
        return
    with average.applied(module):
        module.to("cpu").vae.save_pretrained(options.folder / "decoder" / "final")


def train_transformer(options: argparse.Namespace) -> None:
    """Text encoder and transformer on latents."""
    vae = _load_vae(options, "vae").eval().requires_grad_(False)
    model = ToyVideo(vae.config.z_dim)
    optimizer = muon_adamw(model.named_parameters(), lr=1.2e-3, adam_names=ADAM_NAMES, weight_decay=0.01)
    # A resumed run draws other clips than the first did.
    pool = LatentPool(
        vae, np.random.default_rng((options.seed, int(time.time()), process_rank())), fresh=0.08, two_share=0.25
    )
    config = _loop(options, "transformer", lr=1.2e-3, warmup=40, decay_from=0.3, average=0.996, checkpoint_seconds=180)
    if options.start_from and process_rank() == 0:
        adopt_checkpoint(options.start_from, config.folder / "checkpoint.pt")
    wait_for_all()

    def sample(module: nn.Module, step: int) -> None:
        right = probe(module, vae, config.folder, step, ClipSize(17, 128, 128))
        with open(config.folder / "probe.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **right}) + "\n")

    if torch.cuda.is_available():
        vae.to("cuda")
    train(
        model, optimizer, diffusion_loss(pool, model, options.seed + 2, options.tokens), config, sample, "transformer"
    )


def adopt_checkpoint(source: Path, target: Path) -> None:
    """Begin a run with the state of an earlier one and a fresh budget; a run that has begun goes on undisturbed."""
    if target.exists():
        return
    state = load_checkpoint(source)
    earlier = state.get("earlier_seconds", 0.0) + state["seconds"]
    atomic_save({**state, "seconds": 0.0, "earlier_seconds": earlier}, target)


def assemble(options: argparse.Namespace) -> None:
    """The averaged weights as a Diffusers folder."""
    if process_rank():
        return
    vae = _load_vae(options, "decoder", "vae")
    model = ToyVideo(vae.config.z_dim)
    state = load_checkpoint(options.folder / "transformer" / "checkpoint.pt")
    model.load_state_dict(state["average"])
    facts = {
        "steps": state["step"],
        "seconds": round(state.get("earlier_seconds", 0.0) + state["seconds"]),
        "seed": options.seed,
        "tokens": options.tokens,
    }
    for name in ("vae", "decoder"):
        path = options.folder / name / "checkpoint.pt"
        if path.exists():
            part = load_checkpoint(path)
            facts[name] = {"steps": part["step"], "seconds": round(part["seconds"])}
    log = options.folder / "transformer" / "log.jsonl"
    facts["last_log"] = json.loads(log.read_text().splitlines()[-1]) if log.exists() else None
    target = options.output or options.folder / "model"
    print(f"written: {assemble_toy_video(model, vae, target, facts)}")
