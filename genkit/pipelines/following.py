"""Following a run while it goes on, and ending it early: latents after every step, and a stop within one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genkit.errors import GenkitError

#: Gets (phase, done, total): ("step", 3, 20) after the third denoising step, ("decode", 0, 1) before decoding.
Progress = Callable[[str, int, int], None]
#: Gets the latents after a step, as the denoiser knows them: (B, C, H, W), (B, C, T, H, W), or packed (B, N, C).
Latents = Callable[[Any], None]
#: Asked before every call of a part of the model; True ends the run.
Stop = Callable[[], bool]

STEP, DECODE = "step", "decode"


class Interrupted(GenkitError):
    """The run was ended on request; nothing was made, and the model serves the next run."""


@contextmanager
def stoppable(pipeline: Any, stop: Stop | None) -> Iterator[None]:
    """Let every call of a part of a pipeline, and of what it consists of, ask ``stop`` first meanwhile.

    The answer is read before each call of a denoiser, a text encoder, or a half of an autoencoder, so a run of any
    task ends within one step, whatever it calls.

    Raises:
        Interrupted: ``stop`` returned True.
    """
    if stop is None:
        yield
        return
    import torch

    def ask(module: torch.nn.Module, arguments: Any) -> None:
        if stop():
            raise Interrupted("the run was stopped")

    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    asked = {id(each): each for part in parts for each in (part, *part.children())}
    hooks = [each.register_forward_pre_hook(ask) for each in asked.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
