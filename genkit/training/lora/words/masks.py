"""From attention maps to the parts of a picture, and how far a map is from its part.

Shapes: maps and masks are (concepts, H, W); the last of them is the background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

#: Side of the windows of :func:`similarity`, and its constants for values from 0 to 1.
WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """Every map (..., H, W) from 0 to 1; zeros where it is the same everywhere."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return (maps - low) / torch.where(spread > 0, spread, torch.ones_like(spread))


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps at another size, bicubic: values may leave the range a little."""
    return functional.interpolate(maps[None], size, mode="bicubic", align_corners=False)[0]


def refined(maps: torch.Tensor, spread: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Maps that follow the outlines of self-attention: squared, from 0 to 1, spread, from 0 to 1.

    Args:
        maps: what the words' columns of cross-attention are.
        spread: maps -> S S S S times them, with the self-attention S of the same grid.
    """
    return min_max(spread(min_max(maps.square())))


def classes(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """int64 (H, W): the concept whose map exceeds every other one by more than ``threshold``; -1 where none does."""
    best = maps.topk(2, 0)
    return torch.where(best.values[0] - best.values[1] > threshold, best.indices[0], -1)


def masks_of(maps: torch.Tensor, threshold: float) -> torch.Tensor | None:
    """One mask of 0 and 1 per concept; None where one would be empty.

    A mask belongs to the concept with the most of its map inside. With maps from 0 to 1 that is the one it was made
    of, unless it is empty: the paper's failure of two masks with one word is an empty mask.
    """
    found = classes(maps, threshold)
    masks = torch.stack([(found == index).to(maps.dtype) for index in range(len(maps))])
    owners = torch.einsum("jhw,khw->kj", maps, masks).argmax(1)
    whole = masks.flatten(1).any(1).all() and owners.equal(torch.arange(len(maps), device=maps.device))
    return masks if whole else None


def similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of every map with its counterpart, (concepts,).

    Means over windows of 7 x 7 that lie wholly inside (the largest odd side that fits smaller maps), sample variances.
    """
    side = min(WINDOW, *(size - 1 + size % 2 for size in one.shape[-2:]))
    count = side * side
    ample = count / max(count - 1, 1)

    def mean(value: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(value[:, None], side, 1)[:, 0]

    one, other = one.double(), other.double()
    x, y = mean(one), mean(other)
    xx, yy = ample * (mean(one * one) - x * x), ample * (mean(other * other) - y * y)
    xy = ample * (mean(one * other) - x * y)
    index = (2 * x * y + _C1) * (2 * xy + _C2) / ((x * x + y * y + _C1) * (xx + yy + _C2))
    return index.mean((-2, -1))


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of distributions (..., points): 0 for equal ones, ln 2 at most."""

    def negative_entropy(value: torch.Tensor) -> torch.Tensor:
        return torch.xlogy(value, value).sum(-1)

    return 0.5 * negative_entropy(p) + 0.5 * negative_entropy(q) - negative_entropy((p + q) / 2)


def attention_losses(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """How far every concept's attention is from its part, (concepts,).

    Args:
        maps: the words' columns of cross-attention, of any size; gradients flow through them.
        masks: 0 and 1.

    The softmax over pixels of values from 0 to 1 is nearly flat, so the divergence stays far below ln 2.
    """
    shown = min_max(enlarged(maps, (masks.shape[-2], masks.shape[-1])))
    return divergence(shown.flatten(1).softmax(-1), masks.flatten(1).softmax(-1))
