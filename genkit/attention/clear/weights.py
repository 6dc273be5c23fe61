"""The trainable weight of a layer: how p x p keys and values become one."""

from __future__ import annotations

import torch
from torch import nn

from genkit.attention.site import Place
from genkit.attention.weights import like


class PoolWeights(nn.Module):
    """One number for every place of a p x p cell, shared by heads, channels, keys and values; an average at first.

    ``spatial_weight`` (p, p).
    """

    def __init__(self, place: Place, factor: int):
        super().__init__()
        self.spatial_weight = nn.Parameter(torch.full((factor, factor), factor**-2.0, **like(place.module)))


def average(factor: int, device: torch.device) -> torch.Tensor:
    """What :class:`PoolWeights` begin with, for calls outside a patch."""
    return torch.full((factor, factor), factor**-2.0, device=device)
