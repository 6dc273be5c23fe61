"""What the judges share: reading background, outline, size and place from pixels by arithmetic.

Rotation-invariant moments of a soft mask give the shape; where the evidence is weak the answer is ``"unclear"``.
"""

from __future__ import annotations

import numpy as np

from genkit.world.vocabulary import BACKGROUND_PALETTE, BACKGROUNDS

UNCLEAR = "unclear"

# Distances in RGB units of 0..255.
PALETTE_REACH = 56.0
_BACKGROUND_REACH = 44.0
MIN_AREA = 90.0
# Rotation-invariant figures of perfect shapes: size of the twofold, threefold and fourfold harmonic, and solidity
# (share of the convex hull that is filled, as measured on pixels).
_SHAPE_FIGURES = {
    "circle": (0.0, 0.0, 0.0, 0.98),
    "square": (0.0, 0.0, 0.43, 0.94),
    "triangle": (0.0, 0.66, 0.0, 0.90),
    "cross": (0.0, 0.0, 0.47, 0.73),
}
_FIGURE_WEIGHTS = np.array([0.7, 1.0, 1.0, 1.6])
# Share of a mask's weight in half-covered pixels: about 0.1 for a crisp outline, 0.3 for a rim of three pixels.
SOFT_LIMIT = 0.6
_SHAPE_REACH = 0.21
_HULL_ANGLES = np.deg2rad(np.arange(0, 360, 7.5))


def read_background(pixels: np.ndarray, notes: list[str]) -> tuple[str, np.ndarray]:
    """Name and colour of the background: most border pixels of every frame must agree on one palette entry."""
    if not pixels.size:
        notes.append("background: the clip has no pixels")
        return UNCLEAR, np.full(3, np.nan, np.float32)
    edge = max(2, min(pixels.shape[1:3]) // 32)
    border = np.concatenate(
        [
            pixels[:, :edge].reshape(len(pixels), -1, 3),
            pixels[:, -edge:].reshape(len(pixels), -1, 3),
            pixels[:, :, :edge].reshape(len(pixels), -1, 3),
            pixels[:, :, -edge:].reshape(len(pixels), -1, 3),
        ],
        axis=1,
    )
    ground = np.median(border.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(BACKGROUND_PALETTE - ground, axis=1)
    best = int(distance.argmin())
    agree = (np.linalg.norm(border - BACKGROUND_PALETTE[best], axis=-1) < _BACKGROUND_REACH).mean(axis=1)
    if distance[best] > _BACKGROUND_REACH or agree.min() < 0.6:
        notes.append(
            f"background: nearest palette colour is {distance[best]:.0f} away, {agree.min():.0%} of the border agrees"
        )
        return UNCLEAR, ground
    return list(BACKGROUNDS)[best], ground


def read_box(alpha: np.ndarray) -> np.ndarray:
    """The box (left, top, right, bottom) in pixels of what is at least half covered in (height, width); NaN without."""
    solid = alpha >= 0.5
    if not solid.any():
        return np.full(4, np.nan)
    columns, rows = (np.flatnonzero(solid.any(axis)) for axis in (0, 1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def erode(mask: np.ndarray, times: int) -> np.ndarray:
    """Masks (frames, height, width) without their outermost ``times`` pixels; the canvas edge erodes nothing."""
    for _ in range(times):
        inner = mask.copy()
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        inner[:, :, 1:] &= mask[:, :, :-1]
        inner[:, :, :-1] &= mask[:, :, 1:]
        mask = inner
    return mask


def dilate(mask: np.ndarray, times: int) -> np.ndarray:
    """Masks (frames, height, width) grown by ``times`` pixels."""
    return ~erode(~mask, times)


def connected(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """Connected parts (4 neighbours) of a mask (height, width) that have at least ``least`` pixels, found by spreading
    labels to a fixed point."""
    height, width = mask.shape
    labels = np.where(mask, np.arange(1, height * width + 1).reshape(height, width), 0)
    while True:
        spread = labels
        # Whole runs at once, so that the number of rounds is the number of turns of a shape, not its length.
        for axis in (0, 1):
            for step in (1, -1):
                spread = _run_maximum(spread if step > 0 else np.flip(spread, axis), axis)
                spread = spread if step > 0 else np.flip(spread, axis)
        if np.array_equal(spread, labels):
            break
        labels = spread
    numbers, counts = np.unique(labels[mask], return_counts=True)
    return [labels == number for number, count in zip(numbers, counts, strict=True) if count >= least]


def _run_maximum(labels: np.ndarray, axis: int) -> np.ndarray:
    """Largest label so far along an axis within each run of non-zero labels."""
    lines = np.moveaxis(labels, axis, -1)
    # Runs are made incomparable by an offset that grows with every gap before them.
    runs = np.cumsum(lines == 0, axis=-1)
    offset = runs.astype(np.int64) * (labels.size + 1)
    best = np.maximum.accumulate(lines + offset, axis=-1) - offset
    return np.moveaxis(np.where(lines > 0, best, 0), -1, axis)


def read_moments(alpha: np.ndarray) -> tuple:
    """Area, centre, the twofold, threefold and fourfold harmonics (complex) and solidity of one soft mask."""
    area = float(alpha.sum())
    if area < 1.0:
        return 0.0, np.nan, np.nan, np.zeros(3, complex), np.nan
    rows, columns = np.nonzero(alpha)
    weight = alpha[rows, columns]
    x, y = float((weight * columns).sum() / area), float((weight * rows).sum() / area)
    z = (columns - x) + 1j * (rows - y)
    radius = np.abs(z)
    harmonics = np.array([(weight * z**n).sum() / max((weight * radius**n).sum(), 1e-6) for n in (2, 3, 4)])
    return area, x + 0.5, y + 0.5, harmonics, _solidity(z[weight > 0.5], area)


def _solidity(points: np.ndarray, area: float) -> float:
    """Area over the area of the convex hull, by the hull's support function in fixed directions."""
    if not len(points):
        return np.nan
    # Half a pixel from a pixel's centre to its edge.
    reach = (points[:, None] * np.exp(-1j * _HULL_ANGLES)).real.max(axis=0) + 0.5
    step = _HULL_ANGLES[1] - _HULL_ANGLES[0]
    edges = (np.roll(reach, -1) + np.roll(reach, 1) - 2 * reach * np.cos(step)) / np.sin(step)
    return area / (0.5 * float((reach * edges).sum()))


def _shape_distances(seen: np.ndarray) -> np.ndarray:
    """Distances (..., shapes) of figures (..., 4) to those of the perfect shapes."""
    table = np.array(list(_SHAPE_FIGURES.values()))
    return np.linalg.norm((seen[..., None, :] - table) * _FIGURE_WEIGHTS, axis=-1)


def nearest_shape(harmonics: np.ndarray, solidity: np.ndarray) -> str:
    """The perfect shape that an outline is nearest to, however far: a forced choice where :func:`read_shape` may say
    ``"unclear"``."""
    seen = np.nanmedian(np.concatenate([np.abs(harmonics), solidity[:, None]], axis=-1), axis=0)
    return list(_SHAPE_FIGURES)[int(_shape_distances(seen).argmin())]


def read_shape(harmonics: np.ndarray, solidity: np.ndarray, colour: str, notes: list[str]) -> str:
    """Nearest perfect shape by harmonics (frames, 3) and solidity (frames,); most frames must agree."""
    seen = np.concatenate([np.abs(harmonics), solidity[:, None]], axis=-1)
    distance, middle = _shape_distances(seen), _shape_distances(np.nanmedian(seen, axis=0))
    best = int(middle.argmin())
    agreement = float((distance.argmin(-1) == best).mean())
    second = float(np.partition(middle, 1)[1])
    if not middle[best] < min(_SHAPE_REACH, 0.8 * second) or agreement < 0.6:
        notes.append(
            f"the {colour} outline is {middle[best]:.2f} from the nearest shape, {agreement:.0%} of frames agree"
        )
        return UNCLEAR
    return list(_SHAPE_FIGURES)[best]


def read_size(area: np.ndarray) -> str:
    """Size word of the areas of an object in square pixels."""
    if not len(area):
        return UNCLEAR
    radius = float(np.sqrt(np.median(area) / np.pi))
    return "small" if radius < 15.5 else "medium" if radius < 20.7 else "big"


def read_place(x: np.ndarray, y: np.ndarray, width: int, height: int) -> tuple[str, str]:
    """Horizontal and vertical third in which the object starts."""
    if not len(x) or np.isnan(x[0]):
        return (UNCLEAR, UNCLEAR)
    across = ("left", "middle", "right")[min(int(3 * x[0] / width), 2)]
    down = ("top", "middle", "bottom")[min(int(3 * y[0] / height), 2)]
    return across, down
