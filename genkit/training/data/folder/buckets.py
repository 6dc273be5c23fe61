"""Buckets: the few sizes that a folder's pictures and clips are cut to, so that batches can be stacked.

A bucket's area is at most what is asked for, its sides are multiples of what the model takes. Files go to the bucket
whose ratio of sides is nearest in logarithm, are scaled until they cover it and cut in the middle. Nothing is enlarged
unless asked: a small file gets a bucket of its own size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from genkit.errors import UsageError

#: Long side over short side, at most.
MOST_RATIO = 4.0


@dataclass(frozen=True, order=True)
class Bucket:
    """Frames, height and width in pixels; pictures have one frame."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@cache
def sides_for(area: int, step: int, most_ratio: float = MOST_RATIO) -> tuple[tuple[int, int], ...]:
    """All (height, width) in multiples of ``step`` with at most ``area`` pixels, the largest one of every width.

    Args:
        area: in pixels.
        step: multiple of both sides.
        most_ratio: long side over short side.
    """
    found = []
    for width in range(step, int(math.sqrt(area * most_ratio)) + 1, step):
        height = area // width // step * step
        if height and max(height / width, width / height) <= most_ratio:
            found.append((height, width))
    return tuple(found)


def choose_sides(height: int, width: int, area: int, step: int, enlarge: bool = False) -> tuple[int, int]:
    """The sides of the bucket for a file of ``height`` x ``width`` pixels.

    Raises:
        UsageError: the file is smaller than the smallest bucket.
    """
    choices = sides_for(area if enlarge else min(area, height * width), step)
    if not enlarge:
        choices = tuple((h, w) for h, w in choices if h <= height and w <= width)
    if not choices:
        raise UsageError(
            f"{width}x{height} pixels hold no multiple of {step}; allowed: larger files, or to enlarge small ones"
        )
    ratio = math.log(height / width)
    return min(choices, key=lambda sides: (abs(math.log(sides[0] / sides[1]) - ratio), -sides[0] * sides[1]))


def choose_frames(available: int, most: int, multiple: int) -> int:
    """The largest 1 plus a multiple of ``multiple`` frames among those available and wanted; frames are never repeated.

    Args:
        available: frames of the clip at the wanted rate.
        most: wanted.
        multiple: of the model's frame rule.
    """
    return 1 + (max(min(available, most), 1) - 1) // multiple * multiple
