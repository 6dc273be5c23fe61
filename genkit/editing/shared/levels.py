"""Noise levels of a run: those at which the pipeline's own scheduler samples, or those of latent consistency models."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.training.base import Training
from genkit.families.training.objectives import Flow, Objective, Table
from genkit.families.training.parts import facts

OWN, LCM = "own", "lcm"
#: Steps of the teacher of which latent consistency models take some.
ORIGINAL_STEPS = 50


def levels_of(
    pipe: Any, record: Training, objective: Objective, steps: int, shape: tuple[int, ...], spacing: str = OWN
) -> tuple[float, ...]:
    """``steps + 1`` falling noise levels, the last one 0.

    Args:
        pipe: whose scheduler tells; it is not changed.
        record, objective: of its family.
        steps: denoising steps.
        shape: of one row of latents, for schedulers that shift by size.
        spacing: "own" = the scheduler's; "lcm" = timesteps of latent consistency models, which begin at the noisiest
            one; flow models have their own for both, and so has whoever asks for more steps than the 50 of the teacher.

    Raises:
        UsageError: no step, or an unknown spacing.
    """
    if steps < 1:
        raise UsageError(explain("steps", steps, "1 or more"))
    if spacing not in (OWN, LCM):
        raise UsageError(explain("spacing", spacing, (OWN, LCM)))
    if isinstance(objective, Flow):
        return _flow(pipe, record, steps, shape)
    assert isinstance(objective, Table)
    count = len(objective.kept)
    if spacing == LCM and steps <= ORIGINAL_STEPS and count >= ORIGINAL_STEPS:
        times = lcm_timesteps(steps, count)
    else:
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        times = [min(max(round(float(t)), 0), count - 1) for t in scheduler.timesteps]
    return (*((t + 0.5) / count for t in sorted(set(times), reverse=True)), 0.0)


def lcm_timesteps(steps: int, count: int = 1000, original: int = ORIGINAL_STEPS) -> list[int]:
    """Timesteps of latent consistency models, falling: ``steps`` of the ``original`` ones of the teacher, as
    Diffusers' LCMScheduler chooses them."""
    each = count // original
    teacher = [(index + 1) * each - 1 for index in range(original)][::-1]
    return [teacher[int(index * original / steps)] for index in range(steps)]


def _flow(pipe: Any, record: Training, steps: int, shape: tuple[int, ...]) -> tuple[float, ...]:
    scheduler = _timed_flow(pipe, record, steps, shape)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise UnsupportedError(
            f"{type(scheduler).__name__} tells no noise levels (sigmas); give the pipeline a scheduler that does, such "
            "as FlowMatchEulerDiscreteScheduler"
        )
    found = sorted({float(sigma) for sigma in torch.as_tensor(sigmas) if float(sigma) > 0}, reverse=True)
    return (*found, 0.0)


def _timed_flow(pipe: Any, record: Training, steps: int, shape: tuple[int, ...]) -> Any:
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    known = inspect.signature(scheduler.set_timesteps).parameters
    # Some pipelines hand even levels to the scheduler; the others leave it to it.
    even, objective = [1 - index / steps for index in range(steps)], facts(pipe).objective
    told = (objective.even or objective.timestep == "sigma") and "sigmas" in known
    options: dict[str, Any] = {"sigmas": even} if told else {"num_inference_steps": steps}
    if pipe.scheduler.config.get("use_dynamic_shifting"):
        import math

        shift = record.shift(pipe, {record.streams[0]: shape}) if record.shift is not None else 1.0
        line = pipe.scheduler.config.get("time_shift_type", "exponential") != "exponential"
        options["mu"] = shift if line else math.log(shift)
    scheduler.set_timesteps(**options)
    return scheduler


def timed_scheduler(pipe: Any, record: Training, objective: Objective, steps: int, shape: tuple[int, ...]) -> Any:
    """A fresh copy of a pipeline's scheduler with the timesteps of a run; arguments as of :func:`levels_of`.

    Raises:
        UsageError: no step.
    """
    if steps < 1:
        raise UsageError(explain("steps", steps, "1 or more"))
    if isinstance(objective, Flow):
        return _timed_flow(pipe, record, steps, shape)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler
