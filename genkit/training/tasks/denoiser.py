"""The frozen model that something is trained on: its objective, its text and its answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from genkit.errors import UsageError
from genkit.families.lookup import able, can, facts_of
from genkit.families.training.base import Call
from genkit.families.training.lookup import training_of
from genkit.families.training.objectives import objective_of

#: Text slots of models that take them as an argument, as toy-video's sidecar has them.
SLOTS = 64


class Denoiser:
    """A pipeline's denoiser and how it was trained, as the records of its family say.

    Args:
        pipeline: whose parts are used.
        task: in the family's record, for which the pipeline must be listed.

    Raises:
        UsageError: a pipeline that the task cannot drive.
        UnsupportedError: one whose checkpoint is called in a way that is not known.
    """

    def __init__(self, pipeline: Any, task: str = "train_patch"):
        name = type(pipeline).__name__
        if not can(task, name):
            raise UsageError(f"pipeline: got {name}, allowed: {', '.join(able(task))}")
        self.pipeline = pipeline
        self.training = training_of(pipeline)
        self.objective = objective_of(facts_of(name).objective, pipeline.scheduler)

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.pipeline.unet if hasattr(self.pipeline, "unet") else self.pipeline.transformer

    def encode(self, texts: list[str]) -> torch.Tensor:
        """States (B, slots, width) of prompts as the pipeline makes them."""
        return torch.stack([row["states"] for row in self.training.text(self.pipeline, texts, SLOTS)])

    def predict(
        self, noisy: torch.Tensor, level: torch.Tensor, text: torch.Tensor, module: nn.Module | None = None
    ) -> torch.Tensor:
        """The answer of the denoiser, or of another network of its kind."""
        network = self.module if module is None else module
        (stream,) = self.training.streams
        timestep = self.objective.timesteps(level)
        call = Call(self.pipeline, network, {stream: noisy}, level, timestep, {}, {"states": text})
        return self.training.answers(network(**self.training.arguments(call)), call)[stream]
