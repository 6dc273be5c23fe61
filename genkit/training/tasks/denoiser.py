"""The frozen model that something is trained on: its objective, its text and its answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from genkit.errors import UsageError
from genkit.families.lookup import able, can, facts_of
from genkit.training.engine.objectives import objective_of

#: Text slots of models that take them as an argument, as toy-video's sidecar has them.
SLOTS = 64


class Denoiser:
    """A pipeline's denoiser and how it was trained, as the record of its family says.

    Args:
        pipeline: whose parts are used.
        task: in the family's record, for which the pipeline must be listed.

    Raises:
        UsageError: a pipeline that the task cannot drive.
    """

    def __init__(self, pipeline: Any, task: str = "train_patch"):
        name = type(pipeline).__name__
        if not can(task, name):
            raise UsageError(f"pipeline: got {name}, allowed: {', '.join(able(task))}")
        self.pipeline = pipeline
        self.facts = facts_of(name)
        self.objective = objective_of(self.facts.objective, pipeline.scheduler)

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.pipeline.unet if hasattr(self.pipeline, "unet") else self.pipeline.transformer

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """States (B, slots, width) of prompts as the pipeline makes them."""
        return self.facts.text.states(self.pipeline, texts, SLOTS)

    def predict(
        self, noisy: torch.Tensor, level: torch.Tensor, text: torch.Tensor, module: nn.Module | None = None
    ) -> torch.Tensor:
        """The answer of the denoiser, or of another network of its kind."""
        network = self.module if module is None else module
        return network(noisy, self.objective.timesteps(level), text, return_dict=False)[0]
