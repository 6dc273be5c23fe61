"""The steps of one chunk: the pipeline's own sampler, or few steps that re-noise the clean answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain

#: (latents, timestep) -> the denoiser's answer, after guidance.
Answer = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
#: Called after a step with (steps done, steps in all).
Stepped = Callable[[int, int], None]


class Sampler:
    """Makes a chunk of noise clean with a copy of a pipeline's scheduler, so that streams do not disturb each other.

    Args:
        scheduler: the pipeline's.
        steps: denoising steps.
        renoise: after every step but the last the clean latents that the answer stands for get fresh noise of the next
            level, as distilled few-step models are sampled (CausVid, Self-Forcing). For flow models.

    Raises:
        UnsupportedError: a scheduler whose shift depends on the number of tokens, or one without flow levels.
    """

    def __init__(self, scheduler: Any, steps: int, renoise: bool = False):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UsageError(explain("steps of a stream", steps, "a whole number of at least 1"))
        if scheduler.config.get("use_dynamic_shifting"):
            raise UnsupportedError(
                f"{type(scheduler).__name__} with use_dynamic_shifting: a stream has no number of tokens to shift by; "
                "set a fixed shift"
            )
        self.scheduler, self.steps, self.renoise = copy.deepcopy(scheduler), steps, renoise
        if renoise and not hasattr(scheduler, "sigmas"):
            raise UnsupportedError(f"renoise needs a scheduler of flow levels (sigmas), got {type(scheduler).__name__}")

    def run(
        self, noise: torch.Tensor, answer: Answer, generator: torch.Generator, stepped: Stepped | None = None
    ) -> torch.Tensor:
        """Clean latents of a chunk.

        Args:
            noise: (B, C, T, h, w), float32.
            answer: called once a step.
            generator: of fresh noise.
            stepped: told of every step.
        """
        scheduler, latents = self.scheduler, noise
        scheduler.set_timesteps(self.steps, device=noise.device)
        times = scheduler.timesteps
        levels = [float(level) for level in scheduler.sigmas[: len(times)]] if self.renoise else []
        for step, time in enumerate(times):
            found = answer(latents, time, step).float()
            if not self.renoise:
                latents = scheduler.step(found, time, latents, return_dict=False)[0]
            else:
                latents = latents - levels[step] * found
                if step + 1 < len(times):
                    level = levels[step + 1]
                    latents = (1 - level) * latents + level * drawn(latents.shape, generator, latents.device)
            if stepped is not None:
                stepped(step + 1, len(times))
        return latents


def drawn(shape: Any, generator: torch.Generator, device: Any) -> torch.Tensor:
    """Normal noise of a generator on the CPU: the same on every machine."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(device)
