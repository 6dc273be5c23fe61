"""The loss of kind ``steps``: where one of a student's steps leads against where the teacher's small steps lead.

A round begins with noise and prompts and goes through all steps of the student, one a micro-batch. From the latents of
the moment the teacher, the same model without the LoRA and with guidance, walks to the level of the student's next
step; the student's answer should be the one that leads there at once. The round goes on from the teacher's end or, in a
share of the samples, from the student's own, so that it learns to mend what its earlier steps have done (Ross et al.
2011). What is drawn follows from the seed, the round and the sample's place in it alone.
"""

from __future__ import annotations

import torch

from genkit.families.training.base import Tensors
from genkit.training.distill.grid import Grid, strides
from genkit.training.distill.student import Parts, Student, Teaching

_NOISE, _PATH = 0, 1


class DistillTask(Student):
    """A frozen denoiser with an adapter that learns its own many steps in few.

    Args:
        parts: the models.
        teaching: what is taught.
        grid: noise levels of student and teacher.
        own_path: share of samples that go on from the student's end.
    """

    def __init__(self, parts: Parts, teaching: Teaching, grid: Grid, own_path: float):
        super().__init__(parts, teaching)
        self.grid, self.own_path = grid, own_path
        self._long = strides(teaching.objective, grid.levels)
        self._round: tuple[int, int] | None = None
        self._noisy = torch.empty(0)

    def forward(self, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch, a mean over its samples, and the error of its step as a figure.

        Args:
            number: of the micro-batch; it tells the round and the step.
            rank: index of the process; every process has samples of its own.
        """
        found, step = divmod(number, self.grid.steps)
        text, noisy = self._begin(found, step, rank)
        reached = self._teach(noisy, text, step)
        stride = self._long[step]
        answer = self._answer(self.network, noisy, self.grid.levels[step], text, self._told_guidance())
        wrong = (answer.float() - stride.answer(noisy, reached)).square()
        error = wrong.mean(tuple(range(1, wrong.ndim)))
        own = self._own(found, step, rank).to(noisy.device)
        with torch.no_grad():
            led = stride.go(noisy, answer.detach().float())
            self._noisy = torch.where(own.view(-1, *[1] * (noisy.ndim - 1)), led, reached)
        self._round = (found, step + 1)
        return error.mean(), {f"loss step {step + 1}": float(error.detach().mean())}

    def _begin(self, found: int, step: int, rank: int) -> tuple[Tensors, torch.Tensor]:
        """Prompts of a round, and the latents before one of its steps."""
        text = self._asked(found, rank)
        if self._round == (found, step) and step:
            return text, self._noisy
        noisy = self._noise(_NOISE, found, rank)
        # A run that goes on in the middle of a round walks to where it was, with the weights of the moment.
        for earlier in range(step):
            noisy = self._pass(noisy, text, earlier, self._own(found, earlier, rank).to(noisy.device))
        return text, noisy

    @torch.no_grad()
    def _pass(self, noisy: torch.Tensor, text: Tensors, step: int, own: torch.Tensor) -> torch.Tensor:
        reached = self._teach(noisy, text, step)
        answer = self._answer(self.network, noisy, self.grid.levels[step], text, self._told_guidance())
        led = self._long[step].go(noisy, answer.float())
        return torch.where(own.view(-1, *[1] * (noisy.ndim - 1)), led, reached)

    def _own(self, found: int, step: int, rank: int) -> torch.Tensor:
        """(B,) which samples go on from the student's end."""
        draws = [torch.rand((), generator=self._generator(_PATH, found, place, step)) for place in self.places(rank)]
        return torch.stack(draws) < self.own_path
