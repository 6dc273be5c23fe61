"""The network of a layer that decides between full and sparse attention."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from genkit.attention.site import Place, base_layer
from genkit.attention.straight_through import OPEN
from genkit.attention.weights import draw, like
from genkit.errors import UnsupportedError

#: Widths of the layers, in channels of a head; the last gives two logits.
WIDTHS = (1, 8, 2, 4, 1)
SPARSE, FULL = 0, 1
#: Sines and cosines of the noise level: so many of each, and their shortest and longest period. Timesteps from 0 to 1
#: and from 0 to 1000 both move some of them.
WAVES, SHORTEST, LONGEST = 16, 2.0, 4000.0


def waves(level: torch.Tensor) -> torch.Tensor:
    """(B,) noise levels, as the denoiser gets them -> (B, 2 WAVES) sines and cosines."""
    exponents = torch.arange(WAVES, device=level.device, dtype=level.dtype) / (WAVES - 1)
    periods = SHORTEST * (LONGEST / SHORTEST) ** exponents
    angles = 2 * math.pi * level[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], -1)


class Router(nn.Module):
    """Logits of sparse and full attention from mean queries: a network of widths d, 8d, 2d, 4d, d, 2 with SiLU.

    Its last matrix is zero at first and its last bias (0, 4.5), so that every call is full. ``noise`` (d, 2 WAVES),
    zero at first, adds the noise level to the queries.
    """

    def __init__(self, place: Place):
        super().__init__()
        queries = base_layer(place.projections.q)
        if queries is None or not hasattr(queries, "out_features"):
            raise UnsupportedError(
                f"layer {place.name}: layer_router reads queries before their positions from the projection "
                f"{place.projections.names[0]}, which {type(place.module).__name__} lacks"
            )
        self.site, self.heads, kind = place.name, place.heads, like(queries)
        width = queries.out_features // place.heads
        sizes = [width * factor for factor in WIDTHS] + [2]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for number, (taken, given) in enumerate(zip(sizes, sizes[1:], strict=False)):
            spread = (2 / taken) ** 0.5 if number < len(WIDTHS) - 1 else 0.0
            self.weights.append(draw((given, taken), spread, place.layer * len(WIDTHS) + number, **kind))
            self.biases.append(nn.Parameter(torch.zeros(given, **kind)))
        with torch.no_grad():
            self.biases[-1][FULL] = OPEN
        self.noise = nn.Parameter(torch.zeros(width, 2 * WAVES, **kind))

    def forward(self, means: torch.Tensor, level: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, 2), of sparse and of full attention.

        Args:
            means: (B, C) queries before their positions, a mean over tokens; C channels of all heads. Their size does
                not matter, since models differ in it.
            level: (B,) noise levels; None = unknown, and left out.
        """
        weights, biases = ([each.to(means.device) for each in held] for held in (self.weights, self.biases))
        x = means.to(weights[0]).unflatten(-1, (self.heads, -1)).mean(1)
        x = F.layer_norm(x, x.shape[-1:])
        if level is not None:
            x = x + F.linear(waves(level.to(x)), self.noise.to(x))
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = F.silu(F.linear(x, weight, bias))
        return F.linear(x, weights[-1], biases[-1])
