"""A scheduler that has only the last steps: what a pipeline that is given latents goes on with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genkit.errors import UnsupportedError


class LastSteps:
    """What the block of :func:`last_steps` knows.

    Attributes:
        planned: called with the scheduler whenever the pipeline has planned its steps; None for nobody.
    """

    planned: Callable[[Any], None] | None = None


@contextmanager
def last_steps(pipeline: Any, kept: int, flow_shift: float | None) -> Iterator[LastSteps]:
    """Within the block the pipeline's scheduler is another of its kind, whose every ``set_timesteps`` leaves the last
    ``kept`` steps. The pipeline's own is not touched.

    Args:
        pipeline: of Diffusers.
        kept: how many steps are left.
        flow_shift: timestep shift; None = the pipeline's own.

    Raises:
        UnsupportedError: a scheduler without a timestep shift.
    """
    own, found = pipeline.scheduler, LastSteps()
    pipeline.scheduler = _shifted(own, flow_shift)
    _cut(pipeline.scheduler, kept, found)
    try:
        yield found
    finally:
        pipeline.scheduler = own


def _shifted(own: Any, flow_shift: float | None) -> Any:
    config, changes = own.config, {}
    if flow_shift is not None:
        name = next((name for name in ("flow_shift", "shift") if name in config), None)
        if name is None:
            raise UnsupportedError(
                f"{type(own).__name__} has no timestep shift; give flow_shift=None, or use a flow scheduler"
            )
        changes[name] = flow_shift
        if config.get("use_dynamic_shifting"):  # by the size of the video, with the exponential of a number as shift
            changes["use_dynamic_shifting"] = False
    return type(own).from_config(config, **changes)


def _cut(scheduler: Any, kept: int, found: LastSteps) -> None:
    """Let ``set_timesteps`` leave the last steps alone, with the noise level that they begin at."""
    plan = scheduler.set_timesteps
    dynamic = scheduler.config.get("use_dynamic_shifting")

    @functools.wraps(plan)  # pipelines look at its arguments
    def set_timesteps(*args: Any, **given: Any) -> None:
        if not dynamic:
            given.pop("mu", None)
        plan(*args, **given)
        entries = kept * scheduler.order
        scheduler.sigmas = scheduler.sigmas[-(entries + len(scheduler.sigmas) - len(scheduler.timesteps)) :]
        scheduler.timesteps = scheduler.timesteps[-entries:]
        scheduler.num_inference_steps = kept
        if found.planned is not None:
            found.planned(scheduler)

    scheduler.set_timesteps = set_timesteps
