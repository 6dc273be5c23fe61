"""The loss of kind ``tdm``: a few-step student whose samples are as likely as the teacher's at every noise level.

Trajectory distribution matching with a sparse student (BLADE): a student, the teacher, and a second adapter that learns
the scores of what the student makes (the fake scores). A round rolls the student out from noise through all its steps.
Updates of the fake scores and one update of the student follow, each an optimizer step of its own:

- fake: in one of the student's steps, its end is noised again to any level above, and the fake scores learn to denoise
  it: ``mean((x0_F - x0)^2) / s^2``, s the level's share of noise;
- student: ``mean(sqrt(e^2 + c^2) - c)`` with ``e = x0_F - x0_T``, the difference between what the fake scores and the
  guided teacher make of it, as the gradient of the student's x0 in that step.

Steps do not overlap: each is matched at levels above its own end alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from genkit.families.training.base import Tensors
from genkit.families.training.objectives import Objective
from genkit.training.distill.grid import Grid
from genkit.training.distill.student import Parts, Student, Teaching
from genkit.training.lora.adapter import Adapter

_NOISE, _WALK, _PICK, _AGAIN, _MID = 20, 21, 22, 23, 24
#: Levels that are matched: below the first nothing is left to say, above the second nothing can be seen.
LOWEST, HIGHEST = 0.02, 0.98
#: The published constant of the student's loss.
_SMOOTH = 1e-3 / 128


@dataclass(frozen=True)
class TdmOptions:
    """How a student is matched.

    Args:
        fake_updates: of the fake scores for each of the student.
        renoise: share of a step's own noise that its end keeps; the rest is fresh.
        regularization: weight of the distance of the fake scores to the teacher's answer without guidance.
        accumulation: micro-batches of an optimizer step.
    """

    fake_updates: int = 1
    renoise: float = 0.9
    regularization: float = 0.0
    accumulation: int = 1


def noised_again(
    noisy: torch.Tensor, noise: torch.Tensor, objective: Objective, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Latents (B, ...) at levels ``low`` (B,) with as much fresh noise as brings them to ``high``.

    Signal and total variance are then those of the level; at ``low`` = 0 the latents are clean.
    """
    before, after = (objective.parts(level, noisy) for level in (low, high))
    kept = after[0] / before[0]
    return kept * noisy + (after[1].square() - (kept * before[1]).square()).clamp(min=1e-8).sqrt() * noise


class TdmTask(Student):
    """A student and the fake scores of what it makes.

    Args:
        parts: the models; the teacher is the fake scores' denoiser without its adapter, unless one is given.
        teaching: what is taught.
        grid: noise levels of the student.
        fake: adapter of the fake scores, on a denoiser of its own.
        options: how.
    """

    def __init__(self, parts: Parts, teaching: Teaching, grid: Grid, fake: Adapter, options: TdmOptions):
        super().__init__(parts, teaching)
        self.grid, self.fake, self.options = grid, fake, options
        self.scores = fake.model.eval()
        self._rolled: dict[int, list[torch.Tensor]] = {}
        self._round = -1

    @contextmanager
    def _off(self) -> Iterator[Any]:
        """The teacher within the block: the fake scores' denoiser as it is without them, unless there is another."""
        if self._teacher[0] is not None:
            yield self._teacher[0]
            return
        with self.fake.off():
            yield self.scores

    def forward(self, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch; its number tells whose turn it is. See :class:`Student`."""
        step, part = divmod(number, self.options.accumulation)
        found, turn = divmod(step, self.options.fake_updates + 1)
        text = self._asked(found * self.options.accumulation + part, rank)
        rolled = self._roll(found, part, rank, text)
        if turn < self.options.fake_updates:
            return self._fake_loss(step, part, rank, text, rolled)
        return self._student_loss(step, part, rank, text, rolled)

    # ---- the student's path ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _roll(self, found: int, part: int, rank: int, text: Tensors) -> list[torch.Tensor]:
        """Latents before each of the student's steps; kept for the round, in which its weights are the same."""
        if found != self._round:
            self._round, self._rolled = found, {}
        if part not in self._rolled:
            noisy = self._noise(_NOISE, found, rank, part)
            path = [noisy]
            for step in range(self.grid.steps - 1):
                here, there = (self._levels([each] * len(noisy), noisy) for each in (step, step + 1))
                fresh = self._noise(_WALK, found, rank, part, step)
                noisy = self._put(*self._both(noisy, here, text), fresh, there)
                path.append(noisy)
            self._rolled[part] = path
        return self._rolled[part]

    def _both(self, noisy: torch.Tensor, level: torch.Tensor, text: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """What the student takes for clean latents and for noise at levels (B,)."""
        answer = self._answer(self.network, noisy, level, text, self._told_guidance()).float()
        objective = self.teaching.objective
        return objective.clean(noisy, answer, level), objective.noise(noisy, answer, level)

    def _put(self, clean: torch.Tensor, noise: torch.Tensor, fresh: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Clean latents at a level, with a share of their own noise and the rest fresh."""
        keep = self.options.renoise
        signal, spread = self.teaching.objective.parts(level, clean)
        return signal * clean + spread * (keep * noise + sqrt(1 - keep * keep) * fresh)

    def _levels(self, steps: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """(B,) levels before steps of the student."""
        return torch.tensor([self.grid.levels[step] for step in steps], device=like.device)

    # ---- what is matched ---------------------------------------------------------------------------------------------

    def _matched(
        self, step: int, part: int, rank: int, text: Tensors, rolled: list[torch.Tensor], train: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The student's x0 in one of its steps, that step's end noised again, and its level (B,)."""
        draws = [self._generator(_PICK, step, part, place) for place in self.places(rank)]
        at = [int(torch.randint(self.grid.steps, (), generator=each)) for each in draws]
        noisy = torch.stack([rolled[each][place] for place, each in enumerate(at)])
        high, low = (self._levels([each + later for each in at], noisy) for later in (0, 1))
        with torch.set_grad_enabled(train):
            clean, noise = self._both(noisy, high, text)
        with torch.no_grad():
            middle = self._put(clean, noise, self._noise(_MID, step, rank, part), low)
            floor = low.clamp(min=LOWEST)
            share = torch.cat([torch.rand(1, generator=each) for each in draws]).to(noisy.device)
            level = floor + (HIGHEST - floor).clamp(min=0) * share
            again = noised_again(middle, self._noise(_AGAIN, step, rank, part), self.teaching.objective, low, level)
        return clean, again, level

    def _clean(self, network: Any, noisy: torch.Tensor, level: torch.Tensor, text: Tensors) -> torch.Tensor:
        answer = self._answer(network, noisy, level, text, self._told_guidance()).float()
        return self.teaching.objective.clean(noisy, answer, level)

    def _fake_loss(
        self, step: int, part: int, rank: int, text: Tensors, rolled: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clean, noisy, level = self._matched(step, part, rank, text, rolled, train=False)
        found = self._clean(self.scores, noisy, level, text)
        spread = self.teaching.objective.parts(level, noisy)[1]
        loss = ((found - clean) / spread).square().mean()
        figures = {"loss fake": float(loss.detach())}
        if self.options.regularization:
            with torch.no_grad(), self._off() as teacher:
                wanted = self._clean(teacher, noisy, level, text)
            beside = ((found - wanted) / spread).square().mean()
            figures["loss regularization"] = float(beside.detach())
            loss = loss + self.options.regularization * beside
        return loss, figures

    def _student_loss(
        self, step: int, part: int, rank: int, text: Tensors, rolled: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clean, noisy, level = self._matched(step, part, rank, text, rolled, train=True)
        with torch.no_grad():
            theirs = self._clean(self.scores, noisy, level, text)
            with self._off() as teacher:
                answer = self._guided(teacher, noisy, level, text)
            real = self.teaching.objective.clean(noisy, answer, level)
        loss = student_loss(clean, real, theirs)
        return loss, {"loss student": float(loss.detach()), "distance": float((theirs - real).abs().mean())}


def student_loss(clean: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient in the student's ``clean`` (B, ...) is ``e / sqrt(e^2 + c^2) / numel``, e = fake - real.

    Its constant is the published one, for the size of a sample.
    """
    smooth = _SMOOTH * sqrt(clean[0].numel())
    target = (clean + real - fake).detach()
    return ((clean - target).square() + smooth * smooth).sqrt().sub(smooth).mean()
