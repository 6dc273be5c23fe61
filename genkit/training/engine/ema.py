"""Exponential moving average (EMA) of the trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, of those that are trained; frozen ones are in no average and in no checkpoint."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class EMA:
    """Exponential moving average of the trainable parameters of a module, in float32.

    The decay begins low, ``(1 + n) / (10 + n)`` after ``n`` updates, so that early steps do not linger. Sharded
    parameters (FSDP2) are averaged where their shards lie.

    Args:
        module: whose parameters are averaged; costs 4 bytes a trainable parameter.
        decay: the largest one, in 0..1.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.count = 0
        self.shadow = {name: value.detach().clone().float() for name, value in trainable(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's present weights into the average."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in trainable(module).items():
            self.shadow[name].lerp_(value.float(), 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the module for the duration of a ``with`` block."""
        kept = {name: value.detach().clone() for name, value in trainable(module).items()}
        put(module, self.shadow)
        try:
            yield
        finally:
            put(module, kept)


@torch.no_grad()
def put(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Copy values into the trainable parameters, cast to their dtypes; both have the same names."""
    for name, parameter in trainable(module).items():
        parameter.copy_(values[name])
