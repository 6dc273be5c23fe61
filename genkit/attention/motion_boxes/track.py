"""What motion by boxes keeps on a patch: the boxes, the encoder they go through, and the weights of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, linear, pad, silu

from genkit.attention.batch_rows import spread
from genkit.attention.cache import PatchCache
from genkit.attention.motion_boxes.control import CHANNELS, check_boxes, control
from genkit.attention.site import Place
from genkit.attention.weights import draw, like
from genkit.errors import UnsupportedError


class BoxTrack:
    """The boxes that the next calls of a patch follow; ``BoxTrack.of(patch.cache)`` belongs to the patch.

    What the encoder makes of them is kept for all steps, layers and both halves of guidance.
    """

    def __init__(self) -> None:
        self.boxes: torch.Tensor | None = None
        self._encoded: dict[Any, torch.Tensor] = {}

    @staticmethod
    def of(cache: PatchCache) -> BoxTrack:
        """The track that belongs to a patch, made on first use."""
        return cache.get("box track", BoxTrack)

    def set(self, boxes: torch.Tensor | None) -> None:
        """Where the object is: (frames, 4), or (B, frames, 4) row for row, as shares (left, top, right, bottom) of the
        canvas; None = nowhere, then the model is itself.

        Frames are those of pictures: 1, as many as the clip has, or a multiple of its latent frames.

        Raises:
            UsageError: another shape, a number that is none, or a box outside of the canvas or without an area.
        """
        self.boxes = None if boxes is None else check_boxes(boxes)
        self.forget()

    def forget(self) -> None:
        """Encode anew at the next call: the boxes or the encoder's weights have changed."""
        self._encoded.clear()

    def encoded(self, encoder: Encoder, grid: tuple[int, int, int], batch: int, x: torch.Tensor) -> torch.Tensor | None:
        """Features (B, T*H*W, width) of the boxes on a grid, on the device and in the dtype of ``x``; None without."""
        if self.boxes is None:
            return None
        key = (grid, x.device, x.dtype, torch.is_grad_enabled())
        if key not in self._encoded:
            told = control(self.boxes, grid).to(x.device, x.dtype)
            self._encoded[key] = encoder(told).flatten(1, 3)
        return spread(self._encoded[key], batch, "boxes")


class Encoder(nn.Module):
    """The spatio-temporal encoder: a layer per token, a 3x3 convolution per frame, two convolutions over time."""

    def __init__(self, width: int, seed: int, **kind: Any):
        super().__init__()

        def table(number: int, *shape: int) -> nn.Parameter:
            fan = torch.Size(shape[1:]).numel()
            return draw(shape, fan**-0.5, seed * 1_000_003 + number, **kind)

        self.inner = table(1, width, CHANNELS)
        self.across = table(2, width, width, 3, 3)
        self.along = nn.ParameterList([table(3 + i, width, 3 * width) for i in range(2)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(width, **kind)) for _ in range(4)])

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, CHANNELS) -> (B, T, H, W, width)."""
        biases = [bias.to(told.device, told.dtype) for bias in self.biases]
        x = silu(linear(told, self.inner.to(told), biases[0]))
        flat = x.flatten(0, 1).movedim(-1, 1)  # (B * T, width, H, W)
        x = x + silu(conv2d(flat, self.across.to(told), biases[1], padding=1)).movedim(1, -1).view_as(x)
        for table, bias in zip(self.along, biases[2:], strict=True):
            before, after = pad(x, (0,) * 6 + (1, 0))[:, :-1], pad(x, (0,) * 6 + (0, 1))[:, 1:]
            x = x + silu(linear(torch.cat([before, x, after], -1), table.to(told), bias))
        return x


class LayerWeights(nn.Module):
    """Trainable weights of motion by boxes at one layer: a small network on the layer's values and the boxes' features,
    whose last projection starts at zero."""

    def __init__(self, place: Place, width: int, rank: int, seed: int):
        super().__init__()
        q, v = place.projections.q, place.projections.v
        if q is None or v is None:
            raise UnsupportedError(
                f"layer {place.name}: motion_boxes takes its sizes from the projections "
                f"{', '.join(place.projections.names)}, which {type(place.module).__name__} lacks"
            )
        kind = like(q)
        own = seed * 1_000_003 + 1000 + place.layer * 2
        self.own = draw((rank, v.out_features), v.out_features**-0.5, own, **kind)
        self.box = draw((rank, width), width**-0.5, own + 1, **kind)
        self.bias = nn.Parameter(torch.zeros(rank, **kind))
        self.out = nn.Parameter(torch.zeros(q.out_features, rank, **kind))

    def forward(self, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Values (B, N, C) and features (B, N, width) of the grid's tokens -> the term (B, N, channels of the queries),
        exactly zero before training."""
        own, box, bias, out = (table.to(values) for table in (self.own, self.box, self.bias, self.out))
        return linear(silu(linear(values, own) + linear(features, box, bias)), out)
