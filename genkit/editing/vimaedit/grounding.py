"""Where the edit happens: maps of a word, gathered over the steps, as masks of the latents."""

from __future__ import annotations

import torch
import torch.nn.functional as functional


def normalised(values: torch.Tensor) -> torch.Tensor:
    """Every row's values (R, ...) moved and stretched to 0..1; zeros for a row that is constant."""
    axes = tuple(range(1, values.ndim))
    low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    return torch.where(high > low, (values - low) / (high - low).clamp_min(1e-30), torch.zeros_like(values))


def region_of(maps: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """The region where one of several rows reads its word.

    Args:
        maps: (R, h, w) maps, summed over steps.
        size: (height, width) of the latents; the maps are enlarged to it by repetition.
        threshold: share of a row's own range that counts as inside.

    Returns:
        float (1, 1, height, width), 0 or 1: a place is inside if it is in any row.
    """
    large = functional.interpolate(maps[:, None].float(), size, mode="nearest")
    return (normalised(large) > threshold).any(0, keepdim=True).float()


class Grounding:
    """Maps of the words of two prompts, gathered while sampling.

    Args:
        size: (height, width) of the latents.
        start: share of the steps before which no mask is used.
    """

    def __init__(self, size: tuple[int, int], start: float):
        self.size, self.start = size, start
        self.total: torch.Tensor | None = None

    def add(self, maps: torch.Tensor) -> None:
        """Add one step's propagated maps (R, h, w)."""
        self.total = maps.clone() if self.total is None else self.total + maps

    def region(self, step: int, steps: int, threshold: float) -> torch.Tensor | None:
        """The region (1, 1, height, width) above a threshold; None before ``start`` and where nothing was gathered."""
        if self.total is None or step < int(self.start * steps):
            return None
        return region_of(self.total, self.size, threshold)
