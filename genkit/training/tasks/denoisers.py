"""The frozen model that a patch is trained on: noise levels, targets, text and prediction by family of pipelines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from genkit.errors import UsageError
from genkit.families.facts import EPSILON, FLOW, VELOCITY
from genkit.families.lookup import able, can, facts_of
from genkit.pipelines.tasks.references.record import text_states
from genkit.training.engine.curriculum import draw_levels, draw_sigma

#: Text slots of models that take them as an argument, as toy-video's sidecar has them.
SLOTS = 64


class Denoiser(ABC):
    """A pipeline's denoiser and how it was trained.

    Args:
        pipeline: whose parts are used.
    """

    part: ClassVar[str]

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return getattr(self.pipeline, self.part)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """States (B, slots, width) of prompts as the pipeline makes them."""
        return text_states(self.pipeline, texts, SLOTS)

    @abstractmethod
    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """Noise levels (count,) in 0..1, on the CPU."""

    @abstractmethod
    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and what the model should answer."""

    def predict(
        self, noisy: torch.Tensor, level: torch.Tensor, text: torch.Tensor, module: nn.Module | None = None
    ) -> torch.Tensor:
        """The answer of the denoiser, or of another network of its kind."""
        network = self.module if module is None else module
        return network(noisy, self.timesteps(level), text, return_dict=False)[0]

    @abstractmethod
    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """What the denoiser is told about noise levels."""


class FlowDenoiser(Denoiser):
    """A transformer for videos: straight paths from noise, the answer is the velocity."""

    part = "transformer"

    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Denoiser.levels`."""
        return draw_sigma(count, shift, generator)

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Denoiser.noised`."""
        share = level.view(-1, 1, 1, 1, 1)
        return (1 - share) * clean + share * noise, noise - clean

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Denoiser.timesteps`."""
        return 1000 * level


class UNetDenoiser(Denoiser):
    """A Stable Diffusion UNet: the scheduler's table of betas, the answer is noise or velocity as it says."""

    part = "unet"

    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Denoiser.levels`."""
        return draw_levels(count, shift, generator)

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Denoiser.timesteps`: numbers in the scheduler's table."""
        steps = self.pipeline.scheduler.config.num_train_timesteps
        return (level * steps).long().clamp(0, steps - 1)

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Denoiser.noised`."""
        scheduler, timesteps = self.pipeline.scheduler, self.timesteps(level)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        kind = scheduler.config.prediction_type
        if kind == "v_prediction":
            return noisy, scheduler.get_velocity(clean, noise, timesteps)
        if kind == "epsilon":
            return noisy, noise
        raise UsageError(f"prediction_type: got {kind!r}, allowed: epsilon, v_prediction")


#: By what the denoiser is trained to answer, see :class:`genkit.families.facts.Objective`.
DENOISERS = {FLOW: FlowDenoiser, EPSILON: UNetDenoiser, VELOCITY: UNetDenoiser}
TASK = "train_patch"


def denoiser_of(pipeline: Any) -> Denoiser:
    """The denoiser of a pipeline.

    Raises:
        UsageError: a pipeline of another class.
    """
    name = type(pipeline).__name__
    if not can(TASK, name):
        raise UsageError(f"pipeline: got {name}, allowed: {', '.join(able(TASK))}")
    kind = facts_of(name).objective.of(pipeline.scheduler)
    if kind not in DENOISERS:
        raise UsageError(f"{name} with prediction type {kind}: allowed: {', '.join(DENOISERS)}")
    return DENOISERS[kind](pipeline)
