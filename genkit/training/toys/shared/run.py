"""The making of a shipped model, stage after stage: autoencoders, the denoiser with its text encoders, the folder.

Every toy is one :class:`Toy`: what differs between them. What is done with it, and how a stopped run goes on, is here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.reading import read_json
from genkit.reading.files import MIB
from genkit.training.data.pool import Pool
from genkit.training.engine.checkpoint import load_ema
from genkit.training.engine.loop import LossAt, process_rank, train
from genkit.training.engine.optim import muon_adamw
from genkit.training.engine.stages import Making, Options, newest
from genkit.training.toys.shared.answers import Answers, Decoder, answers_loss
from genkit.training.toys.shared.starts import BIAS_FACTOR, begin, begin_from_weights, weights_folder

#: Frozen autoencoders by part of the pipeline; "sharp" is the "vae" with its last decoder.
Parts = dict[str, nn.Module]
LR = 1.2e-3
#: The stage that trains the decoder on what the denoiser answers, and its peak learning rate.
ANSWERS, ANSWERS_LR = "answers", 6e-4


@dataclass(frozen=True)
class AutoencoderStage:
    """How an autoencoder is trained, or its decoder sharpened.

    Args:
        name: of the stage.
        title: for the progress line.
        wrap: from the autoencoder of the stage ``after`` (None where it is new) to the module in training, which has it
            as ``vae``.
        loss: from a seed to the loss function.
        part: of the pipeline.
        after: stage whose result it goes on from; None for a new one.
        lr: peak learning rate.
        finish: called with the averaged autoencoder before it is written, for statistics of its latents.
    """

    name: str
    title: str
    wrap: Callable[[Any], nn.Module]
    loss: Callable[[int], LossAt]
    part: str = "vae"
    after: str | None = None
    lr: float = 2e-3
    finish: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True)
class Toy:
    """A shipped model and how it is made.

    Args:
        name: of the model.
        minutes: default training time in all.
        tokens: default latent tokens per step.
        main: name of the denoiser's stage.
        shares: stages that train, with their parts of the time.
        classes: part of the pipeline -> Diffusers class of that autoencoder.
        autoencoders: their stages, in order.
        build: the model in training, for the options and the autoencoders.
        adam_names: parts of parameters' names that Muon leaves to AdamW.
        pool: where samples come from, for options, autoencoders and a source of randomness.
        loss: called with (pool, model, seed, tokens).
        look: called with (model, options, autoencoders, folder, step): writes a sheet, returns the judge's figures.
        assemble: called with (model, autoencoders, folder, facts): writes the Diffusers folder.
        teach: called with (options, model) before the first step of the denoiser.
        answers: what the decoder is trained on once the denoiser is finished, for options and autoencoders; None = it
            is not.
        more: adds the model's own options.
    """

    name: str
    minutes: float
    tokens: int
    main: str
    shares: dict[str, float]
    classes: dict[str, str]
    autoencoders: tuple[AutoencoderStage, ...]
    build: Callable[[Options, Parts], nn.Module]
    adam_names: tuple[str, ...]
    pool: Callable[[Options, Parts, np.random.Generator], Pool]
    loss: Callable[[Any, Any, int, int], LossAt]
    look: Callable[[nn.Module, Options, Parts, Path, int], dict[str, float]]
    assemble: Callable[[Any, Parts, Path, dict], Path]
    teach: Callable[[Options, Any], None] | None = None
    answers: Callable[[Options, Parts], Answers | None] = lambda options, parts: None
    more: Callable[[argparse.ArgumentParser], None] | None = None

    def making(self) -> Making:
        """Options and stages of the command."""
        work: dict[str, Callable[[Options], None]] = {
            stage.name: partial(self.train_autoencoder, stage) for stage in self.autoencoders
        }
        last = {ANSWERS: self.train_answers} if ANSWERS in self.shares else {}
        return Making(
            name=self.name,
            minutes=self.minutes,
            tokens=self.tokens,
            main=self.main,
            shares=self.shares,
            work={**work, self.main: self.train_denoiser, **last, "assemble": self.finish},
            more=self.add_arguments,
        )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options that all toys have, and the toy's own."""
        text = "a model (name or folder) whose weights are the start, for want of a checkpoint"
        parser.add_argument("--weights", help=text)
        parser.add_argument("--vae", type=Path, help="folder of a run whose finished autoencoders are taken")
        if self.more:
            self.more(parser)

    def train_autoencoder(self, stage: AutoencoderStage, options: Options) -> None:
        """One stage of an autoencoder; nothing where it is taken from elsewhere or finished."""
        making = self.making()
        if options.vae or options.weights or making.finished(options, stage.name):
            return
        module = stage.wrap(self.load(options, stage.part, stage.after) if stage.after else None)
        optimizer = muon_adamw(module.named_parameters(), lr=stage.lr)
        config = making.loop(options, stage.name, lr=stage.lr, warmup=20, decay_from=0.2, ema_decay=0.99)
        ema = train(module, optimizer, stage.loss(options.seed), config, title=stage.title)
        if process_rank():
            return
        with ema.applied(module):
            vae = module.to("cpu").vae
            if stage.finish:
                stage.finish(vae)
            vae.save_pretrained(options.folder / stage.name / "final")

    def load(self, options: Options, part: str, *stages: str) -> nn.Module:
        """An autoencoder of this run, of ``--vae``'s run or of the model of ``--weights``: the first finished stage."""
        import diffusers

        kind = getattr(diffusers, self.classes[part])
        if options.weights:
            return kind.from_pretrained(weights_folder(options.weights) / part, dtype=torch.float32)
        return kind.from_pretrained(newest(options.vae or options.folder, *stages))

    def parts(self, options: Options) -> Parts:
        """The finished autoencoders, frozen. A sharpened decoder is under "sharp": latents are those of its elder."""
        found: Parts = {}
        for part in self.classes:
            names = [stage.name for stage in self.autoencoders if stage.part == part]
            found[part] = self.load(options, part, names[0])
            if len(names) > 1:
                own = options.folder / ANSWERS / "final"
                last = (ANSWERS, *reversed(names))
                found["sharp"] = found[part].from_pretrained(own) if own.exists() else self.load(options, part, *last)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {name: part.eval().requires_grad_(False).to(device) for name, part in found.items()}

    def train_denoiser(self, options: Options) -> None:
        """Text encoders and denoiser together, on latents."""
        parts = self.parts(options)
        model = self.build(options, parts)
        lr = options.lr or LR
        factors = {"relative_attention": BIAS_FACTOR}
        optimizer = muon_adamw(model.named_parameters(), lr, self.adam_names, factors=factors, weight_decay=0.01)
        # A resumed run draws other samples than the first did.
        rng = np.random.default_rng((options.seed, int(time.time()), process_rank()))
        pool = self.pool(options, parts, rng)
        config = self.making().loop(
            options, self.main, lr=lr, warmup=40, decay_from=0.3, ema_decay=0.996, checkpoint_seconds=180
        )
        begin(options, model, config.folder / "checkpoint.pt", self.teach)

        def validate(module: nn.Module, step: int) -> None:
            right = self.look(module, options, parts, config.folder, step)
            with open(config.folder / "probe.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **right}) + "\n")

        train(model, optimizer, self.loss(pool, model, options.seed + 2, options.tokens), config, validate, self.name)

    def finished_denoiser(self, options: Options, parts: Parts) -> nn.Module:
        """The averaged weights of this run, or the model of ``--weights`` where it has trained no denoiser."""
        model = self.build(options, parts)
        checkpoint = options.folder / self.main / "checkpoint.pt"
        if options.weights and not checkpoint.exists():
            begin_from_weights(options.weights, model)
        else:
            load_ema(model, checkpoint)
        return model.eval().requires_grad_(False)

    def train_answers(self, options: Options) -> None:
        """The decoder once more, on what the finished denoiser answers."""
        making = self.making()
        if making.finished(options, ANSWERS):
            return
        parts = self.parts(options)
        answers = self.answers(options, parts)
        if answers is None:
            return
        model = self.finished_denoiser(options, parts).to(next(parts["sharp"].parameters()).device)
        module = Decoder(parts["sharp"], answers.decode)
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        config = making.loop(options, ANSWERS, lr=ANSWERS_LR, warmup=20, decay_from=0.2, ema_decay=0.99)
        loss = answers_loss(model, parts["sharp"], answers, options.seed + 3)
        ema = train(module, muon_adamw(trained, lr=ANSWERS_LR), loss, config, title="decoder on answers")
        if process_rank() == 0:
            with ema.applied(module):
                module.to("cpu").vae.save_pretrained(options.folder / ANSWERS / "final")

    def finish(self, options: Options) -> None:
        """The averaged weights as a Diffusers folder."""
        if process_rank():
            return
        parts = {name: part.to("cpu") for name, part in self.parts(options).items()}
        model = self.finished_denoiser(options, parts)
        target = options.output or options.folder / "model"
        print(f"written: {self.assemble(model, parts, target, self.facts(options))}")

    def facts(self, options: Options) -> dict[str, Any]:
        """For ``training.json``: of this run, or of the model of ``--weights`` where it has trained no denoiser."""
        making, own = self.making(), options.folder / self.main / "checkpoint.pt"
        if own.exists() or not options.weights:
            return making.facts(options)
        earlier = weights_folder(options.weights) / "training.json"
        told = read_json(earlier, most=MIB) if earlier.is_file() else {}
        return told | making.stage_facts(options)
