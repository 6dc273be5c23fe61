"""Noise levels of a student's steps and of the teacher's smaller ones between them, and the sampler both walk by.

A step of a first-order sampler is linear in the model's answer: ``x' = keep * x + gain * answer``. So one answer leads
from any latents to any others that the sampler's step can reach, and a long step can be taught the end of many short
ones (progressive distillation, Salimans & Ho 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.families.training.objectives import Flow, Objective

#: Samplers of the first order by kind of objective, as Diffusers names them.
EULER, DDIM = "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"


@dataclass(frozen=True)
class Grid:
    """Levels from noise to latents.

    Args:
        levels: (steps + 1,) of the student, falling, 0 at the end.
        substeps: of the teacher in each of its steps.
    """

    levels: tuple[float, ...]
    substeps: int

    @property
    def steps(self) -> int:
        """Steps of the student."""
        return len(self.levels) - 1

    def between(self, step: int) -> list[float]:
        """Levels of the teacher in a step of the student, both ends included: evenly spaced."""
        high, low = self.levels[step], self.levels[step + 1]
        return [high + (low - high) * index / self.substeps for index in range(self.substeps)] + [low]


def sampler_of(scheduler: Any, objective: Objective, shift: float) -> Any:
    """The first-order sampler that a student is made for.

    Args:
        scheduler: the pipeline's.
        objective: what the denoiser answers.
        shift: of the levels of a flow model.
    """
    import diffusers

    if isinstance(objective, Flow):
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    return diffusers.DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)


def grid_of(sampler: Any, objective: Objective, steps: int, substeps: int) -> Grid:
    """The levels at which a sampler calls the model in a number of steps, and those of the teacher between them."""
    sampler.set_timesteps(steps)
    if isinstance(objective, Flow):
        return Grid(tuple(float(sigma) for sigma in sampler.sigmas), substeps)
    size = int(sampler.config.num_train_timesteps)
    # In the middle of a table's row, so that rounding does not move it to the next one.
    return Grid((*((int(time) + 0.5) / size for time in sampler.timesteps), 0.0), substeps)


@dataclass(frozen=True)
class Stride:
    """One step of the sampler: ``x' = keep * x + gain * answer``."""

    keep: float
    gain: float

    @classmethod
    def of(cls, objective: Objective, level: float, next_level: float) -> Stride:
        """The step from one level to a lower one, from the objective's own formulas in float64."""
        here, there = (torch.tensor([value], dtype=torch.float64) for value in (level, next_level))
        one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        signal, spread = objective.parts(there, one)
        moved = [
            float(signal * objective.clean(noisy, answer, here) + spread * objective.noise(noisy, answer, here))
            for noisy, answer in ((one, none), (none, one))
        ]
        return cls(*moved)

    def go(self, noisy: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) after the step."""
        return self.keep * noisy + self.gain * answer

    def answer(self, noisy: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
        """The answer that leads from latents to others in this step."""
        return (reached - self.keep * noisy) / self.gain


def strides(objective: Objective, levels: Sequence[float]) -> list[Stride]:
    """The steps along falling levels."""
    return [Stride.of(objective, high, low) for high, low in zip(levels, levels[1:], strict=False)]
