"""Where subjects are: masks at picture size from boxes or maps, made disjoint, and as tokens of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional

from genkit.errors import UsageError, explain

_BINS = 256


def box_mask(box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """A box as a bool mask.

    Args:
        box: left, top, right, bottom as shares of the canvas.
        size: (height, width) of the mask.
    """
    left, top, right, bottom = box
    height, width = size
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    if not inside.any():
        raise UsageError(explain("box", tuple(box), f"left, top, right, bottom that hold a pixel of {width}x{height}"))
    return inside


def otsu(values: torch.Tensor) -> float:
    """Otsu's threshold of values in 0..1: the one between two classes whose means are furthest apart."""
    counts = torch.histc(values.float().flatten(), _BINS, 0.0, 1.0).double()
    centres = (torch.arange(_BINS, dtype=torch.float64, device=counts.device) + 0.5) / _BINS
    below = counts.cumsum(0)
    mass = (counts * centres).cumsum(0)
    above = below[-1] - below
    low = mass / below.clamp_min(1)
    high = (mass[-1] - mass) / above.clamp_min(1)
    between = below * above * (low - high).square()
    # Empty bins between the classes are all equally good; the middle of them is.
    best = (between >= between.max() * (1 - 1e-12)).nonzero().flatten()
    return float((best.double().mean() + 1) / _BINS)


def on_grid(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A mask (H, W) as the tokens it covers, bool (h w,): bilinear, stretched to 0..1, cut at Otsu's threshold.

    A mask that holds something never comes out empty: then the token it covers most is taken.
    """
    values = functional.interpolate(mask[None, None].float(), grid, mode="bilinear", antialias=True)[0, 0]
    low, high = values.min(), values.max()
    if not mask.any():
        return torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=mask.device)
    if high <= low:
        return torch.ones(grid[0] * grid[1], dtype=torch.bool, device=mask.device)
    values = (values - low) / (high - low)
    return (values > otsu(values)).flatten()


def disjoint(masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Masks (H, W) without their overlaps: a pixel of several goes to the largest of them."""
    order = sorted(range(len(masks)), key=lambda index: int(masks[index].sum()))
    found = list(masks)
    for place, index in enumerate(order):
        for larger in order[place + 1 :]:
            found[index] = found[index] & ~masks[larger]
    return found


def largest_part(mask: torch.Tensor) -> torch.Tensor:
    """The largest connected part of a bool mask (H, W), neighbours being the four sides."""
    height, width = mask.shape
    labels = torch.where(mask, torch.arange(1, height * width + 1, device=mask.device).view(height, width), 0)
    while True:
        padded = functional.pad(labels, (1, 1, 1, 1))
        around = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
        grown = torch.where(mask, torch.stack([labels, *around]).amax(0), 0)
        if torch.equal(grown, labels):
            break
        labels = grown
    if not mask.any():
        return mask
    names, counts = labels[mask].unique(return_counts=True)
    return labels == names[counts.argmax()]


def bounds(mask: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right (the last two exclusive) of what a bool mask (h, w) holds; None for an empty one."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
