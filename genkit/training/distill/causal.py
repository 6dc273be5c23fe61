"""The loss of kind ``causal``: the teacher's clip, chunk by chunk, in sight of its clean earlier chunks.

A round walks the teacher from noise to a clip, and keeps where it was at every level of the student's steps. Then, a
micro-batch for each of the steps: chunk after chunk the student sees the teacher's latents at a level drawn for every
sample, with the keys and values of the *teacher's* clean earlier chunks in its cache, and learns the clean end of that
chunk. Such a regression on the teacher's own paths is what CausVid and Self-Forcing begin with (their ODE
initialisation); the errors of its own that a stream meets are learned by self-forcing.
"""

from __future__ import annotations

import torch

from genkit.families.training.base import Tensors
from genkit.training.distill.chunked import Rollout
from genkit.training.distill.grid import Grid
from genkit.training.distill.student import Parts, Teaching
from genkit.training.distill.task import DistillTask

_CLIP, _AT = 30, 31


class CausalTask(DistillTask):
    """A frozen denoiser with an adapter that learns to make its own clips chunk by chunk.

    Args:
        parts: the models.
        teaching: what is taught.
        grid: noise levels of student and teacher.
        rollout: the student over its cache.
    """

    def __init__(self, parts: Parts, teaching: Teaching, grid: Grid, rollout: Rollout):
        super().__init__(parts, teaching, grid, 0.0)
        self.rollout, self.state = rollout, rollout.state
        self._walked: tuple[int, list[torch.Tensor]] = (-1, [])

    def forward(self, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch, a mean over its samples, and that of every chunk as figures.

        Args:
            number: of the micro-batch; it tells the round.
            rank: index of the process; every process has samples of its own.
        """
        found = number // self.grid.steps
        text = self._asked(found, rank)
        path = self._path(found, rank, text)
        levels = torch.tensor(self.grid.levels, device=path[0].device)

        def answer(noisy: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
            return self._answer(self.network, noisy, level, text, self._told_guidance())

        losses, size = [], self.rollout.chunked.window.chunk
        with self.rollout.video(path[0]) as video:
            for chunk in range(self.rollout.chunked.chunks):
                place = slice(chunk * size, (chunk + 1) * size)
                at = self._at(number, rank, chunk)
                noisy = torch.stack([path[step][row, :, place] for row, step in enumerate(at)])
                level, end = levels[at], path[-1][:, :, place]
                video.begin(self.rollout.tokens(noisy))
                told = video.ask(answer, noisy, level).float()
                losses.append((self.teaching.objective.clean(noisy, told, level) - end).square().mean())
                if chunk + 1 < self.rollout.chunked.chunks:
                    video.keep(answer, end)
        figures = {f"loss chunk {number + 1}": float(loss.detach()) for number, loss in enumerate(losses)}
        return torch.stack(losses).mean(), figures

    def _at(self, number: int, rank: int, chunk: int) -> list[int]:
        """The step of the student at whose level each sample of a chunk is."""
        draws = [self._generator(_AT, number, place, chunk) for place in self.places(rank)]
        return [int(torch.randint(self.grid.steps, (), generator=each)) for each in draws]

    @torch.no_grad()
    def _path(self, found: int, rank: int, text: Tensors) -> list[torch.Tensor]:
        """The teacher's latents before each of the student's steps and at the end; kept for the round."""
        if self._walked[0] != found:
            path = [self._noise(_CLIP, found, rank)]
            for step in range(self.grid.steps):
                path.append(self._teach(path[-1], text, step))
            self._walked = found, path
        return self._walked[1]
