"""The two forms of a selection."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genkit.kernels.plan.lists import to_mask


def as_mask(selected: Sequence[Tensor], blocks: int) -> Tensor:
    """bool (B, H, N, C) of a mask, given alone, or of lists, given as count and index."""
    return selected[0] if len(selected) == 1 else to_mask(selected[0], selected[1], blocks)
