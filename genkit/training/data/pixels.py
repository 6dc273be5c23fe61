"""Pixels as autoencoders take them, and autoencoders that take them quickly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType

import numpy as np
import torch
from torch import nn


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (B, ..., H, W, 3) to float32 (B, 3, ..., H, W) in -1..1."""
    return torch.from_numpy(pixels).movedim(-1, 1).float().div_(127.5).sub_(1.0)


def use_onednn(module: nn.Module) -> nn.Module:
    """Let a frozen module's 3-D convolutions on the CPU use oneDNN; returns the module.

    With one thread torch chooses an unfolded matrix product instead, which takes three times as long for the encoder
    of toy-video.
    """
    if torch.backends.mkldnn.is_available():
        for part in _convolutions(module):
            part._conv_forward = MethodType(_convolve, part)
    return module


@contextmanager
def quick_convolutions(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The same for the time of a block, where their weights are float32."""
    changed = []
    if torch.backends.mkldnn.is_available():
        for module in modules:
            for part in _convolutions(module):
                if part.weight.dtype == torch.float32 and "_conv_forward" not in vars(part):
                    part._conv_forward = MethodType(_convolve, part)
                    changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            del part._conv_forward


def _convolutions(module: nn.Module) -> list[nn.Conv3d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv3d) and part.padding_mode == "zeros"]


def _convolve(self: nn.Conv3d, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if states.device.type != "cpu":
        return type(self)._conv_forward(self, states, weight, bias)
    geometry = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
    return torch.ops.aten.mkldnn_convolution(states.contiguous(), weight, bias, *geometry)
