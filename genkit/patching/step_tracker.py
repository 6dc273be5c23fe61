"""Where the sampling loop is: step index, number of steps and branch of the running denoiser call."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from genkit.patching.driver import running_pipeline

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
        guided: whether the running pipeline says that it guides; False when there is none or it does not tell.
    """

    step: int | None = None
    steps: int | None = None
    branch: str | None = None
    run: int = 0
    aside: bool = False
    guided: bool = False


class StepTracker:
    """Counts steps without touching the pipeline: it only reads.

    It believes the pipeline that is running (see :mod:`genkit.patching.driver`), which need not be the one that was
    patched; the patched one's scheduler serves loops that run outside of any pipeline. Sources, best first: the step
    index of Diffusers' cache context; the scheduler's own step counter; changes of the timestep given to the denoiser.
    A new run is seen by another pipeline, by the scheduler's fresh ``timesteps`` tensor, by a step index that goes
    back, or, without a scheduler, by a timestep that moves against the direction of the loop. A scheduler with several
    evaluations per step (Heun) counts once per step, like the progress bar.

    Args:
        pipe: the patched pipeline, or None for a bare denoiser.
        total: number of steps of a bare denoiser, when the caller knows it.
    """

    def __init__(self, pipe: Any = None, total: int | None = None):
        self._patched_pipe: weakref.ref[Any] | None = None
        self._total: int | None = None
        self._run = -1
        self._driver: weakref.ref[Any] | None = None
        self.restart()
        self.learn(pipe, total)

    def learn(self, pipe: Any, total: int | None) -> None:
        """Add what another patch of the same model knows."""
        if pipe is not None:
            self._patched_pipe = weakref.ref(pipe)
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
        self._foreign = False  # the loop has nothing to do with the scheduler we know
        self._steps: int | None = self._total
        self._step = 0

    def tick(self, context: Any, timestep: Any, training: bool = False, model: Any = None) -> Moment:
        """Read the loop at the start of a denoiser call.

        Args:
            context: Diffusers' cache context of this call, or None.
            timestep: the denoiser's timestep argument: number or tensor of any shape.
            training: gradients are wanted in training mode, so there is no loop.
            model: the denoiser, to find the pipeline that is running.
        """
        branch = None if context is None else context.name
        announced = None if context is None else getattr(context, "step_index", None)
        if training and announced is None:
            return Moment(None, None, branch, self._run)
        self._follow_driver(None if model is None else running_pipeline(model))
        scheduler = self._scheduler()
        if scheduler is not None and not (self._started and self._timesteps is scheduler.timesteps):
            if self._started:
                self.restart()
            self._timesteps = scheduler.timesteps
        if announced is not None:
            self._follow(int(announced), getattr(context, "num_inference_steps", None), scheduler)
        else:
            self._count(scheduler, timestep)
        driver = None if self._driver is None else self._driver()
        guided = getattr(driver, "do_classifier_free_guidance", False) is True
        return Moment(self._step, self._steps, branch, self._run, guided=guided)

    def _follow_driver(self, driver: Any) -> None:
        """Another pipeline at work than before, or none any more, begins another run."""
        before = self._driver() if self._driver is not None else None
        if driver is before:
            return
        if self._started:
            self.restart()
        self._driver = None if driver is None else weakref.ref(driver)

    def _pipe(self) -> Any:
        """The pipeline that is running, else the one that was patched."""
        for held in (self._driver, self._patched_pipe):
            if held is not None and held() is not None:
                return held()
        return None

    def _scheduler(self) -> Any:
        if self._foreign:
            return None
        scheduler = getattr(self._pipe(), "scheduler", None)
        return scheduler if isinstance(getattr(scheduler, "timesteps", None), torch.Tensor) else None

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
        index = _MISSING if scheduler is None else _counter(scheduler)
        value: float | None = None
        if not self._started:
            self._counts_index = index is not _MISSING
            value = _as_number(timestep)
            scheduler = self._own_loop(scheduler, (value,))
        elif self._counts_index and index is not self._index and index != self._index:
            self._ticks += 1  # and the timestep stays on its device
        else:
            value = _as_number(timestep)
            if value is not None and self._value is not None and value != self._value:
                scheduler = self._follow_value(scheduler, value)
                index = _MISSING if scheduler is None else _counter(scheduler)
        if self._steps is None and scheduler is not None:
            self._steps = self._count_steps(scheduler)
        self._started = True
        self._index, self._value = index, value
        if self._counts_index and scheduler is not None:
            self._step = max(0, self._ticks - _warmup(scheduler)) // getattr(scheduler, "order", 1)
        else:
            self._step = self._ticks

    def _follow_value(self, scheduler: Any, value: float) -> Any:
        """The timestep moved and the counter did not: there is none, or the loop steps another scheduler.

        Returns:
            The scheduler whose table the loop follows, or None.
        """
        if self._counts_index:
            self._steps, self._counts_index = self._total, False
        if self._ticks == 0:
            scheduler = self._own_loop(scheduler, (self._value, value))
        if not self._turned(scheduler, value):
            self._ticks += 1
            return scheduler
        self.restart()
        scheduler = self._scheduler()  # what was foreign to the last run may drive this one
        if scheduler is not None:
            self._timesteps = scheduler.timesteps
            self._counts_index = _counter(scheduler) is not _MISSING
        return self._own_loop(scheduler, (value,))

    def _own_loop(self, scheduler: Any, values: tuple[float | None, ...]) -> Any:
        """The scheduler, or None when a loop outside of any pipeline has timesteps that it does not know."""
        if self._driver is not None or scheduler is None or None in values or _in_table(scheduler, values):
            return scheduler
        self._foreign, self._timesteps, self._steps, self._counts_index = True, None, self._total, False
        return None

    def _turned(self, scheduler: Any, value: float) -> bool:
        """Whether the timestep says that another run began."""
        over = self._steps is not None and self._ticks + 1 >= self._steps
        if scheduler is not None:
            return over  # a table may go up and down, but it has an end
        change = value - self._value
        against = self._direction * change < 0
        self._direction = self._direction or math.copysign(1.0, change)
        return against or over

    def _entries(self, scheduler: Any) -> int:
        """How many entries of ``scheduler.timesteps`` this run uses; image-to-image begins in the middle."""
        count = len(scheduler.timesteps)
        told = getattr(self._driver(), "_num_timesteps", None) if self._driver is not None else None
        if isinstance(told, int) and 0 < told <= count:
            return told
        return count - (getattr(scheduler, "_begin_index", None) or 0)

    def _count_steps(self, scheduler: Any) -> int:
        entries = self._entries(scheduler)
        if self._counts_index:
            return math.ceil((entries - _warmup(scheduler)) / getattr(scheduler, "order", 1))
        values = scheduler.timesteps[-entries:].tolist()
        return 1 + sum(a != b for a, b in zip(values, values[1:], strict=False))


def _counter(scheduler: Any) -> Any:
    """The scheduler's count of evaluations: ``_step_index``, in older classes ``counter``, or _MISSING."""
    for name in ("_step_index", "counter"):
        if hasattr(scheduler, name):
            return getattr(scheduler, name)
    return _MISSING


def _warmup(scheduler: Any) -> int:
    """Evaluations at the start of a run before the progress bar begins to move (PNDM)."""
    steps = getattr(scheduler, "num_inference_steps", None)
    if not isinstance(steps, int):
        return 0
    return max(0, len(scheduler.timesteps) - steps * getattr(scheduler, "order", 1))


def _in_table(scheduler: Any, values: tuple[float, ...]) -> bool:
    """Whether a scheduler's timesteps have these values, as they are or as shares of 1000 (flow models)."""
    table = scheduler.timesteps.detach().double().cpu()
    return any(
        all(bool((table * scale - value).abs().min() <= 1e-3 * max(scale, abs(value))) for value in values)
        for scale in (1.0, 1e-3)
    )


def _as_number(timestep: Any) -> float | None:
    """One number for a timestep; per-token timesteps (image-to-video) move with their maximum."""
    if timestep is None:
        return None
    if isinstance(timestep, torch.Tensor):
        return float(timestep.detach().max()) if timestep.numel() else None
    return float(timestep)
