"""The weights of shared cross-attention at one layer, and what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm, linear

from genkit.attention.site import Place
from genkit.attention.weights import draw, like
from genkit.errors import UnsupportedError

_EPS = 1e-6


class LayerWeights(nn.Module):
    """A projection to queries, their norm, and an output projection that starts at zero. Keys and values are the
    block's own: that is what is shared.

    ``query`` (C, C), ``norm`` and ``shift`` (C,), ``out`` (C, C), C channels of all heads.
    """

    def __init__(self, place: Place, seed: int):
        super().__init__()
        q = place.projections.q
        if q is None or not hasattr(q, "out_features"):
            raise UnsupportedError(
                f"layer {place.name}: shared_cross_attention takes its size from the projection "
                f"{place.projections.names[0]}, which {type(place.module).__name__} lacks"
            )
        width, kind = q.out_features, like(q)
        self.place = place
        self.query = draw((width, width), width**-0.5, seed * 1_000_003 + place.layer, **kind)
        self.norm = nn.Parameter(torch.ones(width, **kind))
        self.shift = nn.Parameter(torch.zeros(width, **kind))
        self.out = nn.Parameter(torch.zeros(width, width, **kind))

    def queries(self, attended: torch.Tensor) -> torch.Tensor:
        """Outputs of the layer's attention (B, N, H, D) -> queries (B, N, H, D), normed as the layer's own."""
        heads, table = tuple(attended.shape[2:]), [self.query, self.norm, self.shift]
        query, norm, shift = (each.to(attended) for each in table)
        x = layer_norm(linear(attended.flatten(2), query), norm.shape, norm, shift, _EPS)
        own: Any = getattr(self.place.module, "norm_q", None)
        if own is None:
            return x.unflatten(-1, heads)
        weight = getattr(own, "weight", None)
        whole = weight is not None and weight.numel() == x.shape[-1] != heads[-1]
        return (own(x).unflatten(-1, heads) if whole else own(x.unflatten(-1, heads))).to(attended.dtype)

    def project(self, found: torch.Tensor) -> torch.Tensor:
        """What was read of the text (B, N, H, D) -> the term (B, N, H, D), exactly zero before training."""
        return linear(found.flatten(2), self.out.to(found)).unflatten(-1, tuple(found.shape[2:]))
