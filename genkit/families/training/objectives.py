"""What a denoiser is trained to answer, and the one loss for it: flow, epsilon and v prediction.

A noise level lies in 0..1, 0 for clean latents and 1 for noise alone. An objective turns it into noisy latents, the
target, and what the network is told of it.

- flow: ``x = (1 - level) x0 + level n``, target ``n - x0`` (Lipman et al. 2023; Liu et al. 2023);
- epsilon (Ho et al. 2020) and v (Salimans & Ho 2022), with ``a`` from the scheduler's table at the level's index:
  ``x = sqrt(a) x0 + sqrt(1 - a) n``, targets ``n`` and ``sqrt(a) n - sqrt(1 - a) x0``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.facts import EPSILON, FLOW, VELOCITY

# Share of noise levels drawn evenly: the first step of sampling starts from noise alone, which the others rarely meet.
_EVEN = 0.2
_LOW = 0.25


class Objective(ABC):
    """Noisy latents, targets and timesteps; one of :class:`Flow` and :class:`Table`."""

    @abstractmethod
    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and target.

        Args:
            clean, noise: (B, ...), float32: in bfloat16 levels near 0 and 1 are lost.
            level: (B,), 0 for samples that stay clean.
        """

    @abstractmethod
    def clean(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The clean latents that an answer stands for."""

    @abstractmethod
    def noise(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noise that an answer stands for."""

    @abstractmethod
    def parts(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of clean latents and of noise at levels (B,), with as many axes as ``like`` has; 1 and 0 at 0."""

    @abstractmethod
    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """What the network is told of levels (B,)."""

    @abstractmethod
    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """Levels (count,) to train at, on the CPU; see :func:`draw_sigma` and :func:`draw_levels`."""


@dataclass(frozen=True)
class Flow(Objective):
    """Straight paths from noise to latents; the answer is their velocity.

    Args:
        scale: of the level as the network is told it: 1000 for Wan, 1 for Flux.
    """

    scale: float = 1000.0

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.noised`."""
        share = _over(level, clean)
        return (1 - share) * clean + share * noise, noise - clean

    def clean(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.clean`."""
        return noisy - _over(level, noisy) * answer

    def noise(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.noise`."""
        return noisy + (1 - _over(level, noisy)) * answer

    def parts(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.parts`."""
        share = _over(level, like).to(like)
        return 1 - share, share

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.timesteps`."""
        return self.scale * level

    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.levels`."""
        return draw_sigma(count, shift, generator)


@dataclass(frozen=True, eq=False)
class Table(Objective):
    """The usual diffusion over a scheduler's table of betas; the answer is the noise or the velocity.

    Args:
        kept: (steps,) the scheduler's ``alphas_cumprod``: the share of signal power that is left.
        prediction: "epsilon" or "v_prediction".
    """

    kept: torch.Tensor
    prediction: str

    def __post_init__(self):
        if self.prediction not in (EPSILON, VELOCITY):
            raise UsageError(explain("prediction_type of the scheduler", self.prediction, (EPSILON, VELOCITY)))

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.noised`."""
        signal, spread = self._parts(level, clean)
        noisy = signal * clean + spread * noise
        return noisy, noise if self.prediction == EPSILON else signal * noise - spread * clean

    def clean(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.clean`; of pure noise an epsilon says nothing, the result is infinite."""
        signal, spread = self._parts(level, noisy)
        if self.prediction == EPSILON:
            return (noisy - spread * answer) / signal
        return signal * noisy - spread * answer

    def noise(self, noisy: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.noise`."""
        if self.prediction == EPSILON:
            return answer
        signal, spread = self._parts(level, noisy)
        return spread * noisy + signal * answer

    def parts(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.parts`; the table itself ends a little above 0."""
        signal, spread = self._parts(level, like)
        ended = _over(level, like) <= 0
        return torch.where(ended, 1.0, signal), torch.where(ended, 0.0, spread)

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """See :meth:`Objective.timesteps`: numbers in the table, int64."""
        steps = len(self.kept)
        return (level * steps).long().clamp(0, steps - 1)

    def levels(self, count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.levels`."""
        return draw_levels(count, shift, generator)

    def _parts(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = _over(self.kept.to(like)[self.timesteps(level)], like)
        return kept.sqrt(), (1 - kept).sqrt()


def objective_of(told: Any, scheduler: Any) -> Objective:
    """The objective of a pipeline.

    Args:
        told: :class:`genkit.families.facts.Objective` of the family's record.
        scheduler: the pipeline's; says what is predicted where the family does not.

    Raises:
        UsageError: a prediction type that nothing is trained with.
        UnsupportedError: a scheduler without the table of betas that the family's models are trained with.
    """
    kind = told.of(scheduler)
    if kind == FLOW:
        return Flow(1.0 if told.timestep == "sigma" else 1000.0)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedError(
            f"{type(scheduler).__name__} has no table of betas, which {kind} is trained with; give the pipeline the "
            "scheduler it came with, or one of its kind such as DDIMScheduler"
        )
    return Table(scheduler.alphas_cumprod, kind)


def shifted(level: torch.Tensor, shift: float) -> torch.Tensor:
    """Levels moved towards 1: the flow shift ``k u / (1 + (k - 1) u)`` of Esser et al. (2024); 1 changes nothing."""
    return shift * level / (1 + (shift - 1) * level)


def draw_sigma(count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels: logistic-normal, then shifted towards 1 by ``shift``."""
    return shifted(torch.sigmoid(torch.randn(count, generator=generator)), shift)


def draw_levels(count: int, shift: float, generator: torch.Generator, even_share: float = _EVEN) -> torch.Tensor:
    """Noise levels (count,) in 0..1: ``even_share`` of them even, the others as :func:`draw_sigma` draws them."""
    even = torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < even_share
    return torch.where(chosen, even, draw_sigma(count, shift, generator))


def denoising_loss(
    answer: torch.Tensor,
    target: torch.Tensor,
    level: torch.Tensor,
    mask: torch.Tensor | None = None,
    low_weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of a denoiser: the one loss of all objectives.

    Args:
        answer, target: (B, ...); the difference is taken in float32 at least.
        level: (B,) noise levels. Samples at 0 are given and count nothing, but stay in the sum: in a distributed run
            every parameter must take part in every step.
        mask: weights that broadcast to the target, for a loss inside a region; a sample's error is their weighted mean.
        low_weight: of samples below level 0.25, where the error mostly measures latent noise that nobody can predict.

    Returns:
        The mean over the batch, and the errors (B,) without the levels' weights.
    """
    wrong = (answer - target).square() if target.dtype == torch.float64 else (answer.float() - target.float()).square()
    axes = tuple(range(1, wrong.ndim))
    if mask is None:
        error = wrong.mean(axes)
    else:
        weight = mask.to(wrong).expand_as(wrong)
        error = (weight * wrong).sum(axes) / weight.sum(axes)
    counts = torch.where(level < _LOW, low_weight, 1.0) * (level > 0)
    return (counts * error).mean(), error


def _over(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) with as many axes as ``like`` has."""
    return value.view(-1, *[1] * (like.ndim - 1))
