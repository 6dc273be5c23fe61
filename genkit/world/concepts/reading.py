"""Reading outlines by overlap: an object's soft mask, laid over true outlines of equal area and centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from genkit.world.concepts.outlines import OUTLINES
from genkit.world.reading import UNCLEAR, connected, dilate
from genkit.world.render import shape_distance
from genkit.world.vocabulary import COLOURS, PALETTE, SHAPES

#: Distance from the background, in RGB units of 0..255, from which a pixel is an object's.
OFF_GROUND = 36.0
_COLOUR_REACH = 70.0
_LEAST_AREA = 90.0
# Side of the raster on which outlines are compared, and what it spans in radii of a disc of equal area.
_SIDE, _SPAN = 48, 1.7
# An outline is named when its overlap (shared area over joint area) is at least this; a disc has 0.8 with a heart.
_LEAST_OVERLAP = {"heart": 0.85, "crescent": 0.65}
_OTHERS_OVERLAP = 0.7
_TURNS = {"circle": (0.0,), "square": (90.0, 6), "triangle": (120.0, 8), "cross": (90.0, 6)}


@dataclass(frozen=True)
class Mask:
    """One object of one frame.

    Args:
        alpha: (height, width) share of the object in every pixel.
        colour: of :data:`genkit.world.vocabulary.COLOURS`, or ``"unclear"``.
    """

    alpha: np.ndarray
    colour: str

    @property
    def area(self) -> float:
        """In square pixels."""
        return float(self.alpha.sum())

    @property
    def centre(self) -> tuple[float, float]:
        """x and y in pixels."""
        rows, columns = np.nonzero(self.alpha)
        weight = self.alpha[rows, columns] / self.area
        return float((weight * columns).sum()) + 0.5, float((weight * rows).sum()) + 0.5

    def filled(self) -> Mask:
        """The same object without its holes: what the ground does not reach from the border is inside."""
        ground = self.alpha < 0.5
        height, width = ground.shape
        outside = np.zeros_like(ground)
        for part in connected(ground, 1):
            if part[0].any() or part[-1].any() or part[:, 0].any() or part[:, -1].any():
                outside |= part
        inner = np.broadcast_to(~dilate(outside[None], 1)[0], (height, width))
        return Mask(np.where(inner, 1.0, self.alpha), self.colour)


def masks(frame: np.ndarray, ground: np.ndarray) -> list[Mask]:
    """Objects of a frame, the largest first.

    Args:
        frame: float32 (height, width, 3).
        ground: RGB of the background.
    """
    found = []
    for part in connected(np.abs(frame - ground).max(-1) > OFF_GROUND, _LEAST_AREA / 2):
        # Of its pixels those that are furthest from the ground hold the colour; the rim is a mixture.
        points = frame[part]
        away = np.linalg.norm(points - ground, axis=-1)
        own = np.median(points[away >= np.quantile(away, 0.4)], axis=0)
        gaps = np.linalg.norm(PALETTE - own, axis=-1)
        colour = list(COLOURS)[int(gaps.argmin())] if gaps.min() < _COLOUR_REACH else UNCLEAR
        axis = own - ground
        alpha = np.clip(((frame - ground) @ axis) / float(axis @ axis), 0.0, 1.0)
        alpha = np.where(dilate(part[None], 1)[0], alpha, 0.0)
        alpha[alpha < 0.15] = 0.0
        if alpha.sum() >= _LEAST_AREA:
            found.append(Mask(alpha, colour))
    return sorted(found, key=lambda mask: -mask.area)


def overlaps(mask: Mask) -> dict[str, float]:
    """Overlap in 0..1 with every known shape, at its best turn, and with every upright concept."""
    grid = (np.arange(_SIDE) + 0.5) / _SIDE * 2 * _SPAN - _SPAN
    radius = np.sqrt(mask.area / np.pi)
    x, y = mask.centre
    seen = _sample(mask.alpha, y + radius * grid[:, None], x + radius * grid[None, :])
    result: dict[str, float] = {}
    for name, template in _templates():
        shared = float(np.minimum(seen, template).sum() / np.maximum(seen, template).sum())
        result[name] = max(result.get(name, 0.0), shared)
    return result


def read_outline(mask: Mask) -> str:
    """The shape or concept that a mask covers best; ``"unclear"`` where none is near."""
    found = overlaps(mask)
    best = max(found, key=found.__getitem__)
    return best if found[best] >= _LEAST_OVERLAP.get(best, _OTHERS_OVERLAP) else UNCLEAR


@cache
def _templates() -> tuple[tuple[str, np.ndarray], ...]:
    """Names and rasters of all outlines, of the area of a unit disc and centred by weight."""
    rows = []
    for name in SHAPES:
        turn, *count = _TURNS[name]
        angles = np.deg2rad(np.arange(*count) * turn / count[0]) if count else np.zeros(1)
        rows += [(name, _raster(partial(shape_distance, name), angle)) for angle in angles]
    return (*rows, *((name, _raster(outline, 0.0)) for name, outline in OUTLINES.items()))


def _raster(distance, angle: float) -> np.ndarray:
    side, span = 4 * _SIDE, 2.0
    line = (np.arange(side) + 0.5) / side * 2 * span - span
    u, v = np.meshgrid(line, line)
    cos, sin = np.cos(angle), np.sin(angle)
    fine = (distance(cos * u + sin * v, cos * v - sin * u, np.ones_like(u)) < 0).astype(np.float64)
    whole = Mask(fine, UNCLEAR)
    radius = np.sqrt(whole.area / np.pi)
    x, y = whole.centre
    grid = (np.arange(_SIDE) + 0.5) / _SIDE * 2 * _SPAN - _SPAN
    return _sample(fine, y + radius * grid[:, None], x + radius * grid[None, :])


def _sample(alpha: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values at pixel positions; nothing outside."""
    height, width = alpha.shape
    padded = np.pad(alpha, 1)
    y, x = np.clip(y + 0.5, 0.0, height + 0.999), np.clip(x + 0.5, 0.0, width + 0.999)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = y - top, x - left
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
