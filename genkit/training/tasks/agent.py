"""Distilling dense attention into trained agent attention: the patched model learns what the model itself answers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from genkit.attention.agent import Agent
from genkit.patching import Schedule
from genkit.training.data.world.clips import LatentPool, Sample
from genkit.training.engine.curriculum import Stage
from genkit.training.tasks.base import CaptionedTask, Noised
from genkit.training.tasks.denoisers import denoiser_of
from genkit.training.toys.video.model import sizes
from genkit.world.caption import caption

STAGES = (Stage(0.0, sizes((25, 256, 256, 0.7), (25, 192, 192, 0.3))),)


class AgentTask(CaptionedTask):
    """Agent attention learns the velocity of the dense model on the same noised latents.

    Args:
        pipeline, pool: see :class:`genkit.training.tasks.base.PatchTask`.
        layers: layers with agents.
        stages: sizes over the budget.
    """

    def __init__(
        self, pipeline: Any, pool: LatentPool, layers: str | None = "2:-2", stages: tuple[Stage, ...] = STAGES
    ):
        # A copy made before the patch: it stays dense. Kept in a tuple, so that it is no part of the module.
        dense = deepcopy(denoiser_of(pipeline).module).requires_grad_(False).eval()
        super().__init__(pipeline, Agent(form="trained"), pool, stages, Schedule(layers=layers))
        self.dense = (dense,)

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption of the world's grammar."""
        return caption(sample.scene, rng, picture=sample.latents.shape[1] == 1)

    def forward(self, batch: Noised) -> torch.Tensor:
        """Mean squared distance to the dense model's velocity."""
        with torch.no_grad():
            wanted = self.predict(batch, self.dense[0])
        return self.connected((self.predict(batch) - wanted).square().mean())
