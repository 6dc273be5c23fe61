"""Style-preserving inversion: from a picture's latents to the noise that leads back to them.

A deterministic sampling step is a line in the denoiser's answer, ``z_p = keep z + move answer(z)``: DDIM for noise and
velocity, Euler for flows. Going back, the answer is needed at the very point that is looked for. Plain DDIM inversion
asks for it at ``z_p`` instead; here that is repeated with the point it leads to, until the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UsageError, explain
from genkit.families.facts import EPSILON, FLOW, VELOCITY

Ask = Callable[[torch.Tensor, int], torch.Tensor]
# An iteration whose misses fall to this share of the one before closes in on its goal.
_SHRINKS = 0.5
_EPSILON = 1e-12


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
    guarded: bool = True,
    after: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """The points of the path that ends in ``clean``, in the order of sampling: the first is the start noise.

    Args:
        clean: latents (B, ...) of pictures.
        lines: the steps in the order of sampling.
        ask: (noisy latents, number of the step in ``lines``) -> the denoiser's answer.
        again: how often the answer is asked for anew at the point it led to, K in the paper; 0 is plain DDIM inversion.
        average_below: noise level below which the step uses the mean of the answers; there the iteration swings
            around its goal rather than closing in on it. 0 = never.
        guarded: where the iteration does not close in fast, look at more: how far the last point misses its goal, and
            how far the point does at which the last two answers together point (Anderson's acceleration); of all of
            them the closest is taken, row by row. So no step misses by more than the published one, which is always
            the last point: where a model reacts strongly to its input that one runs away, and the picture comes back
            with another background.
        after: called with the number of steps done.

    Returns:
        ``len(lines) + 1`` tensors; the last is ``clean``.

    Cost: ``len(lines) * (again + 1)`` calls of the denoiser; guarded, two more in steps that do not close in fast.
    """
    points = [clean]
    for index in reversed(range(len(lines))):
        each, goal = lines[index], points[-1]
        if again and each.level < average_below:
            points.append(_mean_answer(goal, each, index, ask, again))
        else:

            def update(point: torch.Tensor, each: Line = each, goal: torch.Tensor = goal, index: int = index) -> Any:
                return each.back(goal, ask(point, index))

            tried = [goal]
            for _ in range(again + 1):
                tried.append(update(tried[-1]))
            points.append(_closest(tried, update) if guarded and again else tried[-1])
        if after is not None:
            after(len(points) - 1)
    return points[::-1]


def _mean_answer(goal: torch.Tensor, each: Line, index: int, ask: Ask, count: int) -> torch.Tensor:
    """The point that the mean of the first ``count`` answers leads back to."""
    point, total = goal, torch.zeros_like(goal)
    for _ in range(count):
        answer = ask(point, index)
        total = total + answer
        point = each.back(goal, answer)
    return each.back(goal, total / count)


def _closest(tried: Sequence[torch.Tensor], update: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Of the points of an iteration the one whose step misses its goal by least, row by row; one more is tried.

    How far a point's step misses the goal is how far the iteration goes on from it.

    Args:
        tried: points (B, ...), each the update of the one before; the first is the goal.
        update: the iteration.
    """
    moves = [after - before for before, after in zip(tried, tried[1:], strict=False)]
    misses = [_length(move) for move in moves]
    if bool((misses[-1] < _SHRINKS * misses[-2]).all()):
        return tried[-1]
    moves.append(update(tried[-1]) - tried[-1])
    further = _accelerated(tried[-2:], moves[-2:])
    points = [*tried[1:], further]
    lengths = [*misses[1:], _length(moves[-1]), _length(update(further) - further)]
    # A point that ran away to no number is the worst of all.
    best = torch.stack(lengths).nan_to_num(nan=torch.inf).argmin(0)
    return torch.stack(points)[best, torch.arange(len(best), device=best.device)]


def _accelerated(points: Sequence[torch.Tensor], moves: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where two points and how far the iteration goes on from each say that it would stay (Anderson, depth one)."""
    change = moves[1] - moves[0]
    along = (moves[1] * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp_min(_EPSILON)
    share = along.clamp(-1, 1).view(-1, *[1] * (change.ndim - 1))
    return points[1] + moves[1] - share * (points[1] - points[0] + change)


def _length(move: torch.Tensor) -> torch.Tensor:
    return move.flatten(1).norm(dim=1)
