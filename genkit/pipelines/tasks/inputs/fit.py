"""Bringing pictures and clips to the size of a run: scaled until they cover it, and their middle taken. It is told."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from genkit.media import resized
from genkit.media.images import crop

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

#: Sides are multiples of this where only the pipeline knows better.
USUAL_MULTIPLE = 8


def size_for(
    own: tuple[int, int], model: Model, asked: tuple[int | None, int | None], area: float | None, grow: bool
) -> tuple[int, int]:
    """Height and width of a run that follows a picture, as near to its proportions as the model's sizes allow.

    Args:
        own: height and width of the picture.
        model: whose rule and limits hold.
        asked: height and width that the user gave; the open ones follow.
        area: pixels of the model's usual size; None where it is not known.
        grow: whether a smaller picture is enlarged to that area too.
    """
    height, width = asked
    multiple = USUAL_MULTIPLE if model.rule is None else model.rule.multiple
    if height is not None and width is not None:
        return height, width
    if height is not None:
        return height, _near(height * own[1] / own[0], multiple)
    if width is not None:
        return _near(width * own[0] / own[1], multiple), width
    scale = 1.0 if area is None else sqrt(area / (own[0] * own[1]))
    scale = scale if grow else min(scale, 1.0)
    limits = model.sidecar.limits
    for side, name in zip(own, ("height", "width"), strict=True):
        scale = min(scale, limits.get(f"max_{name}", 1 << 30) / side)
    for side, name in zip(own, ("height", "width"), strict=True):
        scale = max(scale, limits.get(f"min_{name}", 1) / side)
    return _near(own[0] * scale, multiple), _near(own[1] * scale, multiple)


def fitted(frames: np.ndarray, size: tuple[int, int], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Frames at a size: scaled by Lanczos interpolation until they cover it, and cut to their middle.

    Args:
        frames: uint8 (T, H, W, 3).
        size: height and width.
        name: of the file, for what is told.

    Returns:
        The frames, and what was done to them, one line or none.
    """
    own = frames.shape[1:3]
    if own == size:
        return frames, ()
    rows, columns, top, left = crop(own[0], own[1], size)
    cover = rows, columns
    told = f"{name} of {own[1]}x{own[0]} was "
    if cover != own:
        frames = resized(frames, *cover)
        told += f"scaled to {cover[1]}x{cover[0]}"
    if cover != size:
        told += f"{' and ' if cover != own else ''}cut to its middle, {size[1]}x{size[0]}"
    cut = frames[:, top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(cut), (told,)


def _near(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)
