"""Style-preserving inversion: from a picture's latents to the noise that leads back to them.

A deterministic sampling step is a line in the denoiser's answer, ``z_p = keep z + move answer(z)``: DDIM for noise and
velocity, Euler for flows. Going back, the answer is needed at the very point that is looked for. Plain DDIM inversion
asks for it at ``z_p`` instead; here that is repeated with the point it leads to, until the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from genkit.errors import UsageError, explain
from genkit.families.facts import EPSILON, FLOW, VELOCITY

Ask = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Line:
    """One deterministic sampling step and its inverse.

    Args:
        keep, move: ``z_p = keep * z + move * answer``, with z the noisier point.
        level: noise level of z in 0..1, for what depends on how far a step is.
    """

    keep: float
    move: float
    level: float = 1.0

    def step(self, noisy: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """The next, less noisy point."""
        return self.keep * noisy + self.move * answer

    def back(self, clean: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """The noisier point from which :meth:`step` with the same answer leads to ``clean``."""
        return (clean - self.move * answer) / self.keep


def line(kind: str, here: float, there: float, level: float = 1.0) -> Line:
    """The step of a model that answers ``kind``.

    Args:
        kind: "epsilon", "v_prediction" or "flow".
        here, there: where the step starts and ends: the kept share of signal power (``alphas_cumprod``) of the first
            two kinds, sigma of a flow. For noise ``here`` must be above 0; a velocity may start from noise alone.
        level: see :class:`Line`.
    """
    if kind == FLOW:
        return Line(1.0, there - here, level)
    if kind == VELOCITY:
        # On the quarter circle from signal to noise a step is a turn by the angle between the two levels.
        turn = math.acos(math.sqrt(here)) - math.acos(math.sqrt(there))
        return Line(math.cos(turn), -math.sin(turn), level)
    if kind != EPSILON:
        raise UsageError(explain("what the denoiser answers", kind, (EPSILON, VELOCITY, FLOW)))
    if not here > 0:
        raise UsageError("a model that answers with the noise cannot start a step from noise alone (alphas_cumprod 0)")
    keep = math.sqrt(there / here)
    return Line(keep, math.sqrt(1 - there) - keep * math.sqrt(1 - here), level)


def invert(
    clean: torch.Tensor,
    lines: Sequence[Line],
    ask: Ask,
    *,
    again: int = 5,
    average_below: float = 0.25,
    after: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """The points of the path that ends in ``clean``, in the order of sampling: the first is the start noise.

    Args:
        clean: latents (B, ...) of pictures.
        lines: the steps in the order of sampling.
        ask: (noisy latents, number of the step in ``lines``) -> the denoiser's answer.
        again: how often the answer is asked for anew at the point it led to, K in the paper; 0 is plain DDIM inversion.
        average_below: noise level below which the step uses the mean of the answers; there the iteration swings
            around its goal rather than closing in on it. 0 = the last answer everywhere.
        after: called with the number of steps done.

    Returns:
        ``len(lines) + 1`` tensors; the last is ``clean``.

    Cost: ``len(lines) * (again + 1)`` calls of the denoiser.
    """
    points = [clean]
    for index in reversed(range(len(lines))):
        each, goal = lines[index], points[-1]
        mean = each.level < average_below and again > 0
        point, total = goal, torch.zeros_like(goal)
        for _ in range(again if mean else again + 1):
            answer = ask(point, index)
            total = total + answer
            point = each.back(goal, answer)
        points.append(each.back(goal, total / again) if mean else point)
        if after is not None:
            after(len(points) - 1)
    return points[::-1]
