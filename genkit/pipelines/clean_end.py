"""Samplers of flows that stop before the clean picture, led to their end.

The last noise level of a sampler is 0: what is left then is clean. The DEIS and SA solvers of Diffusers put the last
level of a flow twice instead, so that their last step goes nowhere and noise stays in what they make (a share of 0.14
after 20 steps with shift 3). Their formulas have the logarithm of the level, which 0 has none of; the last step is
therefore Euler's, x - s v, which is what other solvers take there too.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch


def ends_clean(scheduler: Any) -> Any:
    """A sampler that ends at noise level 0: the given one, or one of the same class and settings whose last step does.

    Left as they are: samplers of a table of betas, and those that have a setting for their last level.

    Args:
        scheduler: of Diffusers, before its steps are laid out or after.
    """
    config = scheduler.config  # holds settings of other samplers too, which it was made from
    own = inspect.signature(type(scheduler).__init__).parameters
    if "use_flow_sigmas" not in own or "final_sigmas_type" in own or not config.use_flow_sigmas:
        return scheduler
    kind: Any = type(scheduler)
    return _ending(kind).from_config(config)


@cache
def _ending(kind: Any) -> Any:
    """A class with the name of another, which files of settings hold, and another last step."""
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    class Ending(kind):
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.sigmas[-1] = 0

        def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any):
            if self.step_index is None:
                self._init_step_index(timestep)
            if self.step_index < len(self.timesteps) - 1:
                return super().step(model_output, timestep, sample, *args, **kwargs)
            clean = sample - self.sigmas[self.step_index].to(sample) * model_output
            if self.config.thresholding:
                clean = self._threshold_sample(clean)
            self._step_index += 1
            given = inspect.signature(super().step).bind(model_output, timestep, sample, *args, **kwargs).arguments
            return SchedulerOutput(prev_sample=clean) if given.get("return_dict", True) else (clean,)

    Ending.__name__, Ending.__qualname__, Ending.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Ending
