"""Where the sampling loop is: step index, number of steps and branch of the running denoiser call."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch

_MISSING = object()


@dataclass(frozen=True)
class Moment:
    """One call of the denoiser within a sampling loop.

    Args:
        step: index of the step as the progress bar counts, or None outside of a loop (training).
        steps: number of steps, or None when nobody tells.
        branch: the name the pipeline announces for this call, or None.
        run: number of the sampling run this patch has seen, from 0.
        aside: the call belongs to no loop, a method makes it for itself (a reference pass).
    """

    step: int | None = None
    steps: int | None = None
    branch: str | None = None
    run: int = 0
    aside: bool = False


class Clock:
    """Counts steps without touching the pipeline: it only reads.

    Sources, best first: the step index of Diffusers' cache context; the scheduler's own step counter; changes of the
    timestep given to the denoiser. A new run is seen by the scheduler's fresh ``timesteps`` tensor, by a step index
    that goes back, or, for a bare denoiser, by a timestep that moves against the direction of the loop. A scheduler
    with several evaluations per step (Heun) counts once per step, like the progress bar.

    Args:
        pipe: the pipeline whose scheduler to read, or None for a bare denoiser.
        total: number of steps of a bare denoiser, when the caller knows it.
    """

    def __init__(self, pipe: Any = None, total: int | None = None):
        self._pipe: weakref.ref[Any] | None = None
        self._total: int | None = None
        self._run = -1
        self.restart()
        self.learn(pipe, total)

    def learn(self, pipe: Any, total: int | None) -> None:
        """Add what another patch of the same model knows."""
        if pipe is not None:
            self._pipe = weakref.ref(pipe)
        if total is not None:
            self._total = self._steps = total

    def restart(self) -> None:
        """Take the next call for the first of a new run."""
        self._started = False
        self._timesteps: Any = None
        self._ticks = 0
        self._run += 1
        self._index: Any = _MISSING
        self._value: float | None = None
        self._direction = 0.0
        self._counts_index = True
        self._steps: int | None = self._total
        self._step = 0

    def tick(self, context: Any, timestep: Any, training: bool = False) -> Moment:
        """Read the clock at the start of a denoiser call.

        Args:
            context: Diffusers' cache context of this call, or None.
            timestep: the denoiser's timestep argument: number or tensor of any shape.
            training: gradients are wanted in training mode, so there is no loop.
        """
        branch = None if context is None else context.name
        announced = None if context is None else getattr(context, "step_index", None)
        if training and announced is None:
            return Moment(None, None, branch, self._run)
        scheduler = self._scheduler()
        if scheduler is not None and not self._same_schedule(scheduler):
            self._new_run(scheduler)
        if announced is not None:
            self._follow(int(announced), getattr(context, "num_inference_steps", None), scheduler)
        else:
            self._count(scheduler, timestep)
        return Moment(self._step, self._steps, branch, self._run)

    def _scheduler(self) -> Any:
        pipe = self._pipe() if self._pipe is not None else None
        scheduler = getattr(pipe, "scheduler", None)
        return scheduler if isinstance(getattr(scheduler, "timesteps", None), torch.Tensor) else None

    def _same_schedule(self, scheduler: Any) -> bool:
        return self._started and self._timesteps is scheduler.timesteps

    def _new_run(self, scheduler: Any) -> None:
        if self._started:
            self.restart()
        self._timesteps = scheduler.timesteps

    def _follow(self, index: int, total: int | None, scheduler: Any) -> None:
        order = getattr(scheduler, "order", 1)
        step = index // order
        if self._started and step < self._step:
            self.restart()
        self._started = True
        self._step = step
        if total is not None:
            self._steps = math.ceil(total / order)
        elif self._steps is None and scheduler is not None:
            self._steps = math.ceil(self._entries(scheduler) / order)

    def _count(self, scheduler: Any, timestep: Any) -> None:
        index = getattr(scheduler, "_step_index", _MISSING) if scheduler is not None else _MISSING
        value: float | None = None
        if not self._started:
            self._counts_index = index is not _MISSING
            value = _as_number(timestep)
        elif self._counts_index and index is not self._index and index != self._index:
            self._ticks += 1  # and the timestep stays on its device
        else:
            value = _as_number(timestep)
            if value is not None and self._value is not None and value != self._value:
                self._follow_value(scheduler, value)
        order = getattr(scheduler, "order", 1) if self._counts_index else 1
        if self._steps is None and scheduler is not None:
            self._steps = self._count_steps(scheduler)
        self._started = True
        self._index, self._value = index, value
        self._step = self._ticks // order

    def _follow_value(self, scheduler: Any, value: float) -> None:
        """The timestep moved and the counter did not: there is none, or the loop steps a copy of the scheduler."""
        if self._counts_index and self._total is None:
            self._steps = None
        self._counts_index = False
        if self._turned(scheduler, value):
            self.restart()
        else:
            self._ticks += 1

    def _turned(self, scheduler: Any, value: float) -> bool:
        """Whether a bare denoiser's timestep says that another run began."""
        if scheduler is not None:
            return False
        change = value - self._value
        against = self._direction * change < 0
        self._direction = self._direction or math.copysign(1.0, change)
        return against or (self._total is not None and self._ticks + 1 >= self._total)

    def _entries(self, scheduler: Any) -> int:
        """How many entries of ``scheduler.timesteps`` this run uses; image-to-image begins in the middle."""
        pipe = self._pipe()
        count = len(scheduler.timesteps)
        told = getattr(pipe, "_num_timesteps", None)
        if isinstance(told, int) and 0 < told <= count:
            return told
        return count - (getattr(scheduler, "_begin_index", None) or 0)

    def _count_steps(self, scheduler: Any) -> int:
        entries = self._entries(scheduler)
        if self._counts_index:
            return math.ceil(entries / getattr(scheduler, "order", 1))
        values = scheduler.timesteps[-entries:].tolist()
        return 1 + sum(a != b for a, b in zip(values, values[1:], strict=False))


def _as_number(timestep: Any) -> float | None:
    """One number for a timestep; per-token timesteps (image-to-video) move with their maximum."""
    if timestep is None:
        return None
    if isinstance(timestep, torch.Tensor):
        return float(timestep.detach().max()) if timestep.numel() else None
    return float(timestep)
