"""A pipeline's own scheduler over latents of any shape: samplers of several steps, with noise, as the model is used."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from genkit.editing.shared.levels import timed_scheduler
from genkit.editing.shared.model import EditModel


class Solver:
    """Steps of one run from noise to clean latents.

    Args:
        model: whose pipeline's scheduler is copied; the pipeline's own stays as it is.
        steps: denoising steps.
        like: latents of what the denoiser sees at once, for schedulers that shift by size.
        generator: of fresh noise, of schedulers that draw some.
    """

    def __init__(self, model: EditModel, steps: int, like: torch.Tensor, generator: torch.Generator | None = None):
        self.scheduler = timed_scheduler(model.pipe, model.record, model.objective, steps, tuple(like.shape[1:]))
        self._times = self.scheduler.timesteps
        count = int(self.scheduler.config.num_train_timesteps)
        # A flow's level is its share of noise, of others the middle of a row of the scheduler's table.
        shift = 0.0 if model.flow else 0.5
        self.levels = tuple((float(time) + shift) / count for time in self._times)
        known = inspect.signature(self.scheduler.step).parameters
        self._options: dict[str, Any] = {"generator": generator} if "generator" in known else {}
        self._takes_earlier = "old_pred_original_sample" in known
        self._earlier: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels)

    def begin(self, noise: torch.Tensor) -> torch.Tensor:
        """Latents of the first step, from normal noise."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flows start from the noise itself

    def seen(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents as the denoiser sees them in a step."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return latents
        return self.scheduler.scale_model_input(latents, self._times[index])

    def step(self, index: int, answer: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the next step.

        Args:
            index: of the step; steps are taken in order.
            answer: of the denoiser, of the latents' shape.
        """
        time = self._times[index]
        if not self._takes_earlier:
            return self.scheduler.step(answer, time, latents, **self._options, return_dict=False)[0]
        before = self._times[index - 1] if index else None  # samplers that are handed their own memory
        found, self._earlier = self.scheduler.step(
            answer, self._earlier, time, before, latents, **self._options, return_dict=False
        )
        return found
