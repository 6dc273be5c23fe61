"""Tokens that a model keeps in another order than raster, brought into raster order for a method and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genkit.errors import UnsupportedError
from genkit.layout import TokenLayout

Tile = tuple[int, int, int]


@dataclass(frozen=True)
class Order:
    """One order of a sequence.

    Args:
        places: int64 (N,), where each token of the raster order sits in the model's sequence.
        back: the inverse permutation.
    """

    places: torch.Tensor
    back: torch.Tensor

    def to(self, device: torch.device) -> Order:
        """The same with its tables on ``device``."""
        return self if self.places.device == device else Order(self.places.to(device), self.back.to(device))

    def to_raster(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, ...) in the model's order -> in raster order."""
        return x.index_select(1, self.places)

    def from_raster(self, x: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return x.index_select(1, self.back)


class Orders:
    """The orders of one patched layer, built once."""

    def __init__(self) -> None:
        self._known: dict[tuple[TokenLayout, Tile, torch.device], Order] = {}

    def of(self, layout: TokenLayout, tile: Tile | None, device: torch.device) -> Order | None:
        """The order of a layout whose grid comes box by box, or None for raster order."""
        if tile is None:
            return None
        key = (layout, tile, device)
        if key not in self._known:
            self._known[key] = _build(layout, tile, device)
        return self._known[key]


def _build(layout: TokenLayout, tile: Tile, device: torch.device) -> Order:
    if any(side % step for side, step in zip(layout.grid, tile, strict=True)):
        raise UnsupportedError(f"a token grid of {layout.grid} does not come in boxes of {tile}")
    counts = [side // step for side, step in zip(layout.grid, tile, strict=True)]
    grid = torch.arange(layout.grid_length).view(*counts, *tile).permute(0, 3, 1, 4, 2, 5).reshape(-1)
    places = torch.arange(layout.length)
    for start, stop in layout.grid_spans:
        places[start:stop] = start + grid
    return Order(places.to(device), torch.argsort(places).to(device))
