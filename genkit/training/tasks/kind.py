"""How a task is trained by one command: options, training, the file that is written, what was gained."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.families.lookup import able
from genkit.pipelines.text import parse_pairs
from genkit.reading import whole
from genkit.training.data.pixels import use_onednn
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.engine.loop import LoopConfig, process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.engine.stages import Making, Options
from genkit.training.engine.warm_start import begin_from
from genkit.training.tasks.base import Task

STAGE = "weights"
#: The report of a run, beside the weights.
REPORT = "training.json"


@dataclass(frozen=True)
class TaskKind:
    """How one thing is trained by the command; every file of this room that trains has one, named ``KIND``.

    Args:
        name: of the method, of the subcommand and of the file written.
        minutes, tokens: defaults of the budget and of the tokens per step.
        lr: peak learning rate.
        muon: matrices by Muon; False = everything by AdamW.
        build: the task for the options, a pipeline and the pool's source of randomness.
        more: adds the kind's own options.
        model: that is trained on by default.
        record: name of the task in the families' records; None is ``train_`` and the name.
    """

    name: str
    minutes: float
    tokens: int
    lr: float
    muon: bool
    build: Callable[[Options, Any, np.random.Generator], Task]
    more: Callable[[argparse.ArgumentParser], None] | None = None
    model: str = "toy-video"
    record: str | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Classes of pipelines that can be trained on, as the records of the families say."""
        return able(self.record or f"train_{self.name}")

    @property
    def summary(self) -> str:
        """What is trained, in a sentence: the first line of the module that builds it."""
        return (sys.modules[self.build.__module__].__doc__ or self.name).strip().splitlines()[0].replace("`", "")

    def folder(self, options: Options) -> Path:
        """Where weights and report go."""
        return Path(options.output or options.folder)

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
            from_files=True,
        )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options that all kinds have, and the kind's own."""
        text = f"a model of class {' or '.join(self.families)} (default {self.model})"
        parser.add_argument("--model", default=self.model, help=text)
        parser.add_argument("--steps", type=whole(1), help="train this many steps instead of --minutes")
        parser.set_defaults(lr=self.lr)  # --lr itself is an option of every run
        parser.add_argument(
            "--gradient-checkpointing", action="store_true", help="less memory, about a third more time per step"
        )
        parser.add_argument("--measure", type=whole(0), default=16, help="samples of the measurement; 0 for none")
        if self.more:
            self.more(parser)

    def loop(self, options: Options) -> LoopConfig:
        """The loop's configuration."""
        return self.making().loop(
            options,
            STAGE,
            lr=options.lr,
            seconds=None if options.steps else 60 * options.minutes,
            steps=options.steps or None,
            warmup=20,
            decay_from=0.4,
            ema_decay=0.99,
            gradient_checkpointing=options.gradient_checkpointing,
        )

    def work(self, options: Options) -> None:
        """Train, write the averaged weights, and compare their loss with that at the start."""
        config = self.loop(options)
        # A resumed run draws other clips than the first did.
        rng = np.random.default_rng((options.seed, int(time.time()), process_rank()))
        start, weights = options.start_from, None
        if start is not None and start.suffix == ".safetensors":
            PatchWeights.settings_of(start)  # ArtifactError before the model is loaded
            start, weights = None, start
        task = self.build(options, load_pipeline(options.model, self.families), rng)
        begin_from(start, task, config.folder / "checkpoint.pt")
        if weights is not None:
            task.take(weights)  # a run that has begun takes its own checkpoint instead, in train()
        names = () if self.muon else ("",)  # every name has an empty part
        optimizer = muon_adamw(task.named_parameters(), lr=config.lr, adam_names=names)
        before = self.measured(options, task) if options.measure else None

        def validate(module: Task, step: int) -> None:
            row = {"step": step, **module.probe()}
            if options.measure:
                row["loss"] = self.measured(options, module)
            with open(config.folder / "probe.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")

        ema = train(task, optimizer, task.loss(options.seed + 2, options.tokens), config, validate, title=self.name)
        if process_rank():
            return
        with ema.applied(task):
            target = task.save(self.folder(options) / f"{self.name}.safetensors")
            print(f"written: {target}")
            after = self.measured(options, task) if options.measure else None
        self.report(options, target, str(task.measured), before, after)

    def measured(self, options: Options, task: Task) -> float:
        """The loss on new samples that follow from the seed."""
        return task.validation_loss(options.measure, options.tokens, options.seed + 1_000_000)

    def report(self, options: Options, target: Path, size: str, before: float | None, after: float | None) -> None:
        """What was trained and what came of it, as :data:`REPORT` beside the weights."""
        state = load_checkpoint(options.folder / STAGE / "checkpoint.pt")
        seconds = round(state["earlier_seconds"] + state["seconds"], 1)
        facts = {"method": self.name, "model": options.model, "steps": state["step"], "seconds": seconds}
        facts |= {"tokens": options.tokens, "lr": options.lr, "seed": options.seed}
        if after is not None:
            facts |= {"samples": options.measure, "size": size, "loss untrained": before, "loss trained": after}
            print(f"loss on {options.measure} new samples of {size}: untrained {before:.5f}, trained {after:.5f}")
        target.with_name(REPORT).write_text(json.dumps(facts, indent=1) + "\n")


def method_of(options: Options, name: str, **fixed: str) -> Method:
    """The method that a task trains, with the settings of ``--attention-args``.

    Args:
        options: of the command. name: of the method.
        fixed: settings that are the task's own, besides ``weights`` and ``untrained``.

    Raises:
        UsageError: settings that mean nothing, or one of the task's own.
    """
    given = parse_pairs(options.attention_args, "--attention-args") if options.attention_args else {}
    for own in ("weights", "untrained", *fixed):
        if own in given:
            raise UsageError(f"--attention-args: {own} is the task's own business; --start-from continues a training")
    return registry.build(name, given | fixed | {"untrained": "true"})


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
