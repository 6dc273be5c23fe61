"""Which noise levels are trained, and how much each of them counts.

A level lies in 0..1, 0 for clean latents and 1 for noise alone, whatever the family. Where Diffusers' scripts turn the
drawn number round (their table descends), a positive mean is less noise; here it is always more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from genkit.errors import UsageError, explain
from genkit.families.facts import EPSILON
from genkit.families.training.objectives import Flow, Objective, Table, shifted

UNIFORM, LOGIT_NORMAL, MODE = "uniform", "logit_normal", "mode"
#: Levels nearer to 0 are not trained on straight paths: there is nothing to learn and the answer is all noise.
LOWEST = 1e-3
#: Draws after which a range of levels counts as never met.
_TRIES = 1000


@dataclass(frozen=True)
class Levels:
    """A distribution of noise levels.

    Args:
        sampling: before the shift: ``uniform``; ``logit_normal``, the sigmoid of a normal number (Esser et al. 2024);
            ``mode``, their heavy-tailed one.
        mean, std: of the normal number.
        scale: of ``mode``; above 0 the middle levels come more often.
        shift: factor of the flow shift, see :func:`genkit.families.training.objectives.shifted`; 1 for none.
        low, high: only levels between the two are drawn, with the relative frequency that they have without the bounds.
    """

    sampling: str = LOGIT_NORMAL
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    shift: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if self.sampling not in (UNIFORM, LOGIT_NORMAL, MODE):
            raise UsageError(explain("timestep_sampling", self.sampling, (UNIFORM, LOGIT_NORMAL, MODE)))
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(f"noise levels: got {self.low:g} to {self.high:g}, allowed: a range within 0 to 1")

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Levels (count,), float32, on the generator's device.

        Raises:
            UsageError: the range is one that the distribution does not reach.
        """
        found = torch.empty(0)
        for _ in range(_TRIES):
            drawn = self._free(max(4 * count, 64) if self._bounded else count, generator)
            found = torch.cat([found, drawn[(drawn >= self.low) & (drawn <= self.high)] if self._bounded else drawn])
            if len(found) >= count:
                return found[:count]
        raise UsageError(
            f"noise levels from {self.low:g} to {self.high:g} practically never come with timestep_sampling "
            f"{self.sampling} and shift {self.shift:g}; take uniform, or a wider range"
        )

    @property
    def _bounded(self) -> bool:
        return self.low > 0 or self.high < 1

    def _free(self, count: int, generator: torch.Generator) -> torch.Tensor:
        if self.sampling == LOGIT_NORMAL:
            level = torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator))
        else:
            level = torch.rand(count, generator=generator)
        if self.sampling == MODE:
            level = 1 - level - self.scale * (torch.cos(math.pi / 2 * level).square() - 1 + level)
        return shifted(level, self.shift)


_BELL = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5)
#: Name -> weight of levels (B,) in the loss of straight paths.
WEIGHTINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": torch.ones_like,
    "sigma_sqrt": lambda level: level**-2.0,
    "cosmap": lambda level: 2 / (math.pi * (1 - 2 * level + 2 * level**2)),
    # Mean 1 over even levels: the least value of the bell is taken off it.
    "bell": lambda level: (torch.exp(-2 * (level - 0.5) ** 2) - math.exp(-0.5)) / _BELL,
}


def weight_of(
    objective: Objective, weighting: str = "none", gamma: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from levels (B,) to their weights in the loss.

    Args:
        objective: what is trained.
        weighting: one of :data:`WEIGHTINGS`, for straight paths.
        gamma: of the min-SNR weighting (Hang et al. 2023), for a table of betas; None for none.

    Raises:
        UsageError: a weighting for the other kind of objective, which would have no effect.
    """
    if weighting not in WEIGHTINGS:
        raise UsageError(explain("loss_weighting", weighting, WEIGHTINGS))
    if isinstance(objective, Flow):
        if gamma is not None:
            raise UsageError("snr_gamma weighs epsilon and v prediction; this is a flow model: leave it out")
        return WEIGHTINGS[weighting]
    if weighting != "none":
        raise UsageError(f"loss_weighting {weighting} weighs flow models; this model predicts noise: take snr_gamma")
    if gamma is None or not isinstance(objective, Table):
        return WEIGHTINGS["none"]
    table = objective

    def min_snr(level: torch.Tensor) -> torch.Tensor:
        kept = table.kept.to(level)[table.timesteps(level)]
        snr = kept / (1 - kept)
        # Without signal an epsilon weight would be 0 / 0: its limit is 1.
        below = snr if table.prediction == EPSILON else snr + 1
        return torch.where(below > 0, snr.clamp(max=gamma) / below.clamp(min=1e-12), 1.0)

    return min_snr
