"""The loss of a student: where one of its steps leads against where the teacher's small steps lead.

A round begins with noise and prompts and goes through all steps of the student, one a micro-batch. From the latents of
the moment the teacher, the same model without the LoRA and with guidance, walks to the level of the student's next
step; the student's answer should be the one that leads there at once. The round goes on from the teacher's end or, in a
share of the samples, from the student's own, so that it learns to mend what its earlier steps have done (Ross et al.
2011). What is drawn follows from the seed, the round and the sample's place in it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.families.training.base import Call, Tensors, Training
from genkit.families.training.objectives import Objective
from genkit.training.distill.grid import Grid, strides
from genkit.training.distill.prompts import Prompts, Texts
from genkit.training.lora.adapter import Adapter

_NOISE, _PATH = 0, 1


@dataclass(frozen=True, eq=False)
class Teaching:
    """What a student is taught.

    Args:
        grid: noise levels of student and teacher.
        objective: what the denoiser answers.
        prompts: what is asked for.
        texts: encodes them.
        shape: of the latents of a sample, without a batch axis.
        media: what else the denoiser is told of a sample of this size, without a batch axis.
        batch: samples of a process in a round.
        seed: of all that is drawn.
        guidance: of the teacher; 1 for none.
        embedded: whether the denoiser takes its guidance as an input; teacher and student are then told the same.
        negative: what the teacher is guided away from.
        own_path: share of samples that go on from the student's end.
        fps: frames per second of clips.
    """

    grid: Grid
    objective: Objective
    prompts: Prompts
    texts: Texts
    shape: tuple[int, ...]
    media: Tensors
    batch: int
    seed: int
    guidance: float
    embedded: bool
    negative: str
    own_path: float
    fps: float | None = None


class DistillTask(nn.Module):
    """A frozen denoiser with an adapter that learns its own many steps in few.

    Args:
        pipeline: whose denoiser carries the adapter.
        training: the family's record.
        adapter: what is trained.
        teaching: how.
        teacher: another denoiser to learn from, where the student's has an attention method in it; None for the
            student's own without the adapter.
    """

    def __init__(self, pipeline: Any, training: Training, adapter: Adapter, teaching: Teaching, teacher: Any = None):
        super().__init__()
        self.pipeline, self.training_record, self.adapter, self.teaching = pipeline, training, adapter, teaching
        self.network = adapter.model.eval()
        self._teacher = (teacher,)  # in a tuple, so that it is no part of the module
        self._stream = training.streams[0]
        levels, objective = teaching.grid.levels, teaching.objective
        self._long = strides(objective, levels)
        self._short = [strides(objective, teaching.grid.between(step)) for step in range(teaching.grid.steps)]
        self._round: tuple[int, int] | None = None
        self._noisy = torch.empty(0)

    def forward(self, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch, a mean over its samples, and the error of its step as a figure.

        Args:
            number: of the micro-batch; it tells the round and the step.
            rank: index of the process; every process has samples of its own.
        """
        steps = self.teaching.grid.steps
        found, step = divmod(number, steps)
        text, noisy = self._begin(found, step, rank)
        reached = self._teach(noisy, text, step)
        stride = self._long[step]
        answer = self._answer(self.network, noisy, self.teaching.grid.levels[step], text, self._told_guidance())
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
        teaching = self.teaching
        places = range(rank * teaching.batch, (rank + 1) * teaching.batch)
        text = self._texts([teaching.prompts.at(teaching.seed, found, place) for place in places])
        if self._round == (found, step) and step:
            return text, self._noisy
        noise = [torch.randn(teaching.shape, generator=self._generator(_NOISE, found, place)) for place in places]
        noisy = torch.stack(noise).to(self.device)
        # A run that goes on in the middle of a round walks to where it was, with the weights of the moment.
        for earlier in range(step):
            noisy = self._pass(noisy, text, earlier, self._own(found, earlier, rank).to(noisy.device))
        return text, noisy

    @torch.no_grad()
    def _pass(self, noisy: torch.Tensor, text: Tensors, step: int, own: torch.Tensor) -> torch.Tensor:
        reached = self._teach(noisy, text, step)
        answer = self._answer(self.network, noisy, self.teaching.grid.levels[step], text, self._told_guidance())
        led = self._long[step].go(noisy, answer.float())
        return torch.where(own.view(-1, *[1] * (noisy.ndim - 1)), led, reached)

    def _own(self, found: int, step: int, rank: int) -> torch.Tensor:
        """(B,) which samples go on from the student's end."""
        places = range(rank * self.teaching.batch, (rank + 1) * self.teaching.batch)
        draws = [torch.rand((), generator=self._generator(_PATH, found, place, step)) for place in places]
        return torch.stack(draws) < self.teaching.own_path

    @torch.no_grad()
    def _teach(self, noisy: torch.Tensor, text: Tensors, step: int) -> torch.Tensor:
        """Where the teacher arrives at the level of the student's next step."""
        levels = self.teaching.grid.between(step)
        with self._off() as teacher:
            for level, stride in zip(levels[:-1], self._short[step], strict=True):
                noisy = stride.go(noisy, self._guided(teacher, noisy, level, text))
        return noisy

    @contextmanager
    def _off(self) -> Iterator[Any]:
        """The teacher within the block."""
        if self._teacher[0] is not None:
            yield self._teacher[0]
            return
        with self.adapter.off():
            yield self.network

    def _guided(self, teacher: Any, noisy: torch.Tensor, level: float, text: Tensors) -> torch.Tensor:
        """The teacher's answer, in float32."""
        teaching = self.teaching
        if teaching.embedded or teaching.guidance == 1:
            return self._answer(teacher, noisy, level, text, self._told_guidance()).float()
        negative = self._texts([teaching.negative] * len(noisy))
        both = {name: torch.cat([text[name], negative[name]]) for name in text}
        answer = self._answer(teacher, torch.cat([noisy, noisy]), level, both, 1.0).float()
        with_prompt, without = answer.chunk(2)
        return without + teaching.guidance * (with_prompt - without)

    def _answer(self, network: Any, noisy: torch.Tensor, level: float, text: Tensors, guidance: float) -> torch.Tensor:
        """A denoiser's answer (B, ...) in the layout of the latents."""
        levels = torch.full((len(noisy),), level, device=noisy.device)
        media = {name: value.expand(len(noisy), *value.shape) for name, value in self.teaching.media.items()}
        call = Call(
            pipeline=self.pipeline,
            model=network,
            noisy={self._stream: noisy},
            level=levels,
            timestep=self.teaching.objective.timesteps(levels),
            media=media,
            text=text,
            guidance=guidance,
            fps=self.teaching.fps,
        )
        record = self.training_record
        return record.answers(network(**record.arguments(call)), call)[self._stream]

    def _told_guidance(self) -> float:
        return self.teaching.guidance if self.teaching.embedded else 1.0

    def _texts(self, prompts: list[str]) -> Tensors:
        found: Mapping[str, torch.Tensor] = self.teaching.texts.of(prompts)
        return {name: value.to(self.device) for name, value in found.items()}

    def _generator(self, *place: int) -> torch.Generator:
        state = np.random.SeedSequence((self.teaching.seed, *place)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.network.parameters()).device

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks that accelerate shards apart (FSDP2), as the denoiser names them."""
        return list(getattr(self.network, "_no_split_modules", None) or [])
