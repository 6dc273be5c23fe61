"""Training the weights of a patch by one command: train, save beside nothing else, measure."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.evaluation.toy_picture import PictureRequest
from genkit.families.lookup import able
from genkit.training.data.world.clips import LatentPool
from genkit.training.data.world.references import ReferenceClips, ReferencePictures
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.engine.curriculum import batch_for
from genkit.training.engine.loop import LoopConfig, process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.engine.warm_start import begin_from
from genkit.training.tasks.agent import AgentTask
from genkit.training.tasks.base import PatchTask, mean_loss, patch_loss
from genkit.training.tasks.context import ContextTask
from genkit.training.tasks.denoisers import UNetDenoiser, denoiser_of
from genkit.training.tasks.reference import PICTURE_SHIFT, PICTURE_STAGES, ReferenceTask
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.shared.autoencoder import use_onednn
from genkit.training.toys.shared.making import Making, Options, exit_code

STAGE = "weights"


@dataclass(frozen=True)
class PatchKind:
    """How the weights of one method are trained.

    Args:
        name: of the method, of the subcommand and of the weights file.
        minutes, tokens: defaults of the budget and of the tokens per step.
        lr: peak learning rate.
        muon: matrices by Muon; False = everything by AdamW.
        build: the task for the options, a pipeline and the pool's source of randomness.
        more: adds the kind's own options.
        model: that is patched by default.
    """

    name: str
    minutes: float
    tokens: int
    lr: float
    muon: bool
    build: Callable[[Options, Any, np.random.Generator], PatchTask]
    more: Callable[[argparse.ArgumentParser], None]
    model: str = "toy-video"

    @property
    def families(self) -> tuple[str, ...]:
        """Classes of pipelines that may be patched, as the records of the families say."""
        return able(f"train_{self.name}")

    def making(self) -> Making:
        """Options and the one stage."""
        return Making(
            name=f"patch-{self.name}",
            minutes=self.minutes,
            tokens=self.tokens,
            main=STAGE,
            shares={STAGE: 1.0},
            work={STAGE: self.work},
            more=self.add_arguments,
        )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options that all kinds have, and the kind's own."""
        text = f"a model of class {' or '.join(self.families)} (default {self.model})"
        parser.add_argument("--model", default=self.model, help=text)
        parser.add_argument("--steps", type=int, help="train this many steps instead of --minutes")
        parser.add_argument("--lr", type=float, default=self.lr, help=f"peak learning rate (default {self.lr:g})")
        parser.add_argument("--measure", type=int, default=16, help="samples of the measurement; 0 for none")
        self.more(parser)

    def loop(self, options: Options) -> LoopConfig:
        """The loop's configuration."""
        return LoopConfig(
            folder=options.folder / STAGE,
            lr=options.lr,
            seconds=None if options.steps else 60 * options.minutes,
            steps=options.steps or None,
            warmup=20,
            decay_from=0.4,
            ema_decay=0.99,
            validation_seconds=60 * options.sample_minutes,
            begin=options.begin,
        )

    def work(self, options: Options) -> None:
        """Train, write the averaged weights, and compare their loss with that at the start."""
        if options.measure < 0:
            raise UsageError(f"--measure must be 0 or more, got {options.measure}")
        config = self.loop(options)
        # A resumed run draws other clips than the first did.
        rng = np.random.default_rng((options.seed, int(time.time()), process_rank()))
        task = self.build(options, load_pipeline(options.model, self.families), rng)
        begin_from(options.start_from, task, config.folder / "checkpoint.pt")
        names = () if self.muon else ("",)  # every name has an empty part
        optimizer = muon_adamw(task.named_parameters(), lr=options.lr, adam_names=names)
        before = self.measured(options, task) if options.measure else None
        loss = patch_loss(task, options.seed + 2, options.tokens)

        def sample(module: PatchTask, step: int) -> None:
            row = {"step": step, **module.probe()}
            if options.measure:
                row["loss"] = self.measured(options, module)
            with open(config.folder / "probe.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")

        ema = train(task, optimizer, loss, config, sample, title=self.name)
        if process_rank():
            return
        with ema.applied(task):
            target = (options.output or options.folder) / f"{self.name}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            print(f"written: {task.weights.save(target)}")
            after = self.measured(options, task) if options.measure else None
        self.report(options, target, str(task.measured), before, after)

    def measured(self, options: Options, task: PatchTask) -> float:
        """The loss on new clips that follow from the seed."""
        size = task.measured
        count = min(options.measure, batch_for(size, options.tokens))
        return mean_loss(task, size, max(1, options.measure // count), count, options.seed + 1_000_000)

    def report(self, options: Options, target: Path, size: str, before: float | None, after: float | None) -> None:
        """What was trained and what came of it, as ``training.json`` beside the weights."""
        state = load_checkpoint(options.folder / STAGE / "checkpoint.pt")
        seconds = round(state.get("earlier_seconds", 0.0) + state["seconds"], 1)
        facts = {"method": self.name, "model": options.model, "steps": state["step"], "seconds": seconds}
        facts |= {"tokens": options.tokens, "lr": options.lr, "seed": options.seed}
        if after is not None:
            facts |= {"samples": options.measure, "size": size, "loss untrained": before, "loss trained": after}
            print(f"loss on {options.measure} new samples of {size}: untrained {before:.5f}, trained {after:.5f}")
        target.with_name("training.json").write_text(json.dumps(facts, indent=1) + "\n")


def load_pipeline(model: str, families: tuple[str, ...]) -> Any:
    """The pipeline in float32 on the device of this process, its autoencoder's convolutions made fast."""
    import torch
    from accelerate import PartialState

    from genkit.pipelines.load import load

    device = PartialState(cpu=not torch.accelerator.is_available()).device
    pipeline = load(model, torch.float32, device)
    name = type(pipeline).__name__
    if name not in families:
        raise UsageError(f"--model: got {model!r}, a {name}; allowed: models of class {' or '.join(families)}")
    pipeline.set_progress_bar_config(disable=True)
    use_onednn(pipeline.vae)
    return pipeline


def _reference(options: Options, pipeline: Any, rng: np.random.Generator) -> PatchTask:
    if isinstance(denoiser_of(pipeline), UNetDenoiser):
        pool = ReferencePictures(pipeline.vae, rng, fresh=0.15)
        probe = PictureRequest.of_model(options.model, 64, 64, steps=12)
        return ReferenceTask(pipeline, pool, PICTURE_STAGES, probe, options.rank, shift=PICTURE_SHIFT)
    return ReferenceTask(pipeline, ReferenceClips(pipeline.vae, rng, fresh=0.15), rank=options.rank)


def _reference_options(parser: argparse.ArgumentParser) -> None:
    text = "rank of the changes of q, k, v on the reference's side, or full (default 32)"
    parser.add_argument("--rank", type=lambda given: given if given == "full" else int(given), default=32, help=text)


def _agent(options: Options, pipeline: Any, rng: np.random.Generator) -> PatchTask:
    return AgentTask(pipeline, LatentPool(pipeline.vae, rng, fresh=0.1), options.layers)


def _agent_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", default="2:-2", help="layers with agents (default 2:-2)")


def _context(options: Options, pipeline: Any, rng: np.random.Generator) -> PatchTask:
    pool = SoundPool(pipeline.vae, rng, fresh=0.1, audio_vae=pipeline.audio_vae)
    return ContextTask(pipeline, pool, options.context_tokens, options.space)


def _context_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context-tokens", type=int, default=8, help="per layer and direction (default 8)")
    parser.add_argument("--space", choices=("keys", "source"), default="keys", help="where they live (default keys)")


KINDS = {
    kind.name: kind
    for kind in (
        PatchKind(
            "reference", 25, 1500, 2e-3, True, _reference, _reference_options,
        ),
        PatchKind("agent", 25, 3600, 3e-3, False, _agent, _agent_options),
        PatchKind(
            "cross_modal_context", 25, 3600, 3e-3, False, _context, _context_options,
            model="toy-av",
        ),
    )
}  # fmt: skip


def main(description: str, arguments: list[str] | None = None) -> int:
    """The body of ``scripts/train_patch.py``: the first argument names the method."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="method", required=True)
    makings = {name: kind.making() for name, kind in KINDS.items()}
    for name, making in makings.items():
        making.add_arguments(commands.add_parser(name, help=f"weights of {name}"))
    options = parser.parse_args(arguments)
    return exit_code(lambda: makings[options.method].run(options))
