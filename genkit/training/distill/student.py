"""What every kind of student shares: how teacher and student are asked, and where what is drawn comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True, eq=False)
class Teaching:
    """What a student is taught.

    Args:
        objective: what the denoiser answers.
        prompts: what is asked for.
        texts: encodes them.
        shape: of the latents of a sample, without a batch axis.
        media: what else the denoiser is told of a sample of this size, without a batch axis.
        batch: samples of a process in a micro-batch.
        seed: of all that is drawn.
        guidance: of the teacher; 1 for none.
        embedded: whether the denoiser takes its guidance as an input; teacher and student are then told the same.
        negative: what the teacher is guided away from.
        fps: frames per second of clips.
    """

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
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """The models of a run.

    Args:
        pipeline: whose denoiser carries the student's adapter.
        training: the family's record.
        adapter: the student.
        teacher: another denoiser to learn from, where the student's has an attention method in it; None for the
            student's own without the adapter.
        weights: of attention methods in the student that are trained too; None for none.
    """

    pipeline: Any
    training: Training
    adapter: Adapter
    teacher: Any = None
    weights: nn.Module | None = None


class Student(nn.Module):
    """A frozen denoiser with an adapter that learns from a teacher; subclasses give the loss of a micro-batch.

    ``forward(number, rank)`` returns the loss, a mean over the samples, and figures for the log. What it draws follows
    from the seed, the number and a sample's place in the batch alone.
    """

    #: Noise levels of student and teacher, of students of few steps.
    grid: Grid

    def __init__(self, parts: Parts, teaching: Teaching):
        super().__init__()
        self.pipeline, self.training_record, self.adapter = parts.pipeline, parts.training, parts.adapter
        self.teaching = teaching
        self.network = parts.adapter.model.eval()
        self.attention = parts.weights
        self.state: Any = None  # what a stream remembers, of a student that learns one
        self._teacher = (parts.teacher,)  # in a tuple, so that it is no part of the module
        self._stream = parts.training.streams[0]

    def places(self, rank: int) -> range:
        """Places of a process's samples in the batch of all processes."""
        return range(rank * self.teaching.batch, (rank + 1) * self.teaching.batch)

    @contextmanager
    def _off(self) -> Iterator[Any]:
        """The teacher within the block."""
        if self._teacher[0] is not None:
            yield self._teacher[0]
            return
        with self.adapter.off():
            yield self.network

    def _guided(self, teacher: Any, noisy: torch.Tensor, level: float | torch.Tensor, text: Tensors) -> torch.Tensor:
        """The teacher's answer with guidance, in float32."""
        teaching = self.teaching
        if teaching.embedded or teaching.guidance == 1:
            return self._answer(teacher, noisy, level, text, self._told_guidance()).float()
        negative = self._texts([teaching.negative] * len(noisy))
        both = {name: torch.cat([text[name], negative[name]]) for name in text}
        levels = torch.cat([level, level]) if isinstance(level, torch.Tensor) else level
        answer = self._answer(teacher, torch.cat([noisy, noisy]), levels, both, 1.0).float()
        with_prompt, without = answer.chunk(2)
        return without + teaching.guidance * (with_prompt - without)

    @torch.no_grad()
    def _teach(self, noisy: torch.Tensor, text: Tensors, step: int) -> torch.Tensor:
        """Where the teacher arrives, from before a step of the student, at the level of its next one."""
        levels = self.grid.between(step)
        with self._off() as teacher:
            for level, stride in zip(levels[:-1], strides(self.teaching.objective, levels), strict=True):
                noisy = stride.go(noisy, self._guided(teacher, noisy, level, text))
        return noisy

    def _answer(
        self,
        network: Any,
        noisy: torch.Tensor,
        level: float | torch.Tensor,
        text: Tensors,
        guidance: float,
        media: Tensors | None = None,
    ) -> torch.Tensor:
        """A denoiser's answer (B, ...) in the layout of the latents.

        Args:
            level: one for all samples, or (B,).
            media: (B, ...) of each sample; None for what :class:`Teaching` has.
        """
        levels = torch.as_tensor(level, dtype=torch.float32, device=noisy.device).expand(len(noisy))
        if media is None:
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

    def _texts(self, prompts: Sequence[str]) -> Tensors:
        found: Mapping[str, torch.Tensor] = self.teaching.texts.of(list(prompts))
        return {name: value.to(self.device) for name, value in found.items()}

    def _asked(self, number: int, rank: int) -> Tensors:
        """The encoded prompts of a process's samples in a round."""
        teaching = self.teaching
        return self._texts([teaching.prompts.at(teaching.seed, number, place) for place in self.places(rank)])

    def _noise(self, purpose: int, number: int, rank: int, *more: int) -> torch.Tensor:
        """Noise (B, ...) of a process's samples, drawn on the CPU: it is the same on every device."""
        draws = (self._generator(purpose, number, place, *more) for place in self.places(rank))
        return torch.stack([torch.randn(self.teaching.shape, generator=each) for each in draws]).to(self.device)

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
