"""Distilling dense attention into a method with weights: the patched model learns what the model itself answers."""

from __future__ import annotations

import argparse
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from genkit.attention.agent import Agent
from genkit.attention.method import Method
from genkit.patching import Schedule
from genkit.training.data.pool import Sample
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.tasks.base import CaptionedTask, Noised
from genkit.training.tasks.denoiser import Denoiser
from genkit.training.tasks.kind import TaskKind
from genkit.training.toys.video.model import sizes
from genkit.world.caption import caption

STAGES = (Stage(0.0, sizes((25, 256, 256, 0.7), (25, 192, 192, 0.3))),)


class AgentTask(CaptionedTask):
    """A method with weights learns the velocity of the dense model on the same noised latents.

    Args:
        pipeline, pool: see :class:`genkit.training.tasks.base.PatchTask`.
        layers: layers with the method.
        stages: sizes over the budget.
        method: whose weights are trained; None = agent attention.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        layers: str | None = "2:-2",
        stages: tuple[Stage, ...] = STAGES,
        method: Method | None = None,
    ):
        # A copy made before the patch: it stays dense. Kept in a tuple, so that it is no part of the module.
        dense = deepcopy(Denoiser(pipeline).module).requires_grad_(False).eval()
        super().__init__(pipeline, method or Agent(form="trained"), pool, stages, Schedule(layers=layers))
        self.dense = (dense,)

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption of the world's grammar."""
        return caption(sample.scene, rng, picture=sample.latents.shape[1] == 1)

    def forward(self, batch: Noised) -> torch.Tensor:
        """Mean squared distance to the dense model's velocity."""
        with torch.no_grad():
            wanted = self.predict(batch, self.dense[0])
        return self.connected((self.predict(batch) - wanted).square().mean())


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> AgentTask:
    """The task for the options of the command."""
    return AgentTask(pipeline, LatentPool(pipeline.vae, rng, fresh=0.1), options.layers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--layers", default="2:-2", help="layers with agents (default 2:-2)")


KIND = TaskKind("agent", minutes=25, tokens=3600, lr=3e-3, muon=False, build=build, more=add_arguments)
