"""Pictures of the toy world: anti-aliased shapes by signed distance, many clips at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from genkit.errors import UsageError
from genkit.world.scene import Scene, Tracks
from genkit.world.vocabulary import BACKGROUNDS, COLOURS

#: Signed distance in pixels, negative inside, of local coordinates to the right and down and of a radius in pixels.
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_SQRT3 = np.sqrt(3.0, dtype=np.float32)
# Proportions that give every shape about the area of a disc of the same radius.
_SQUARE_HALF = 0.886
_TRIANGLE_INRADIUS = 0.778
_CROSS_LENGTH, _CROSS_HALF = 1.12, 0.42
# Farthest point of any shape from its centre: the corner of the triangle.
_REACH = 2 * _TRIANGLE_INRADIUS
#: How far a shape that is not turned reaches to the left, right, top and bottom of its centre, in units of its radius.
SHAPE_EXTENTS: dict[str, tuple[float, float, float, float]] = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (_SQUARE_HALF,) * 4,
    "triangle": (float(_SQRT3) * _TRIANGLE_INRADIUS,) * 2 + (_REACH, _TRIANGLE_INRADIUS),
    "cross": (_CROSS_LENGTH,) * 4,
}


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance in pixels (negative inside) of local coordinates ``u`` (right) and ``v`` (down)."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(_SQUARE_HALF) * radius
    if shape == "triangle":
        slanted = np.float32(0.5) * (_SQRT3 * np.abs(u) - v)
        return np.maximum(v, slanted) - np.float32(_TRIANGLE_INRADIUS) * radius
    u, v = np.abs(u), np.abs(v)
    length, half = _CROSS_LENGTH * radius, _CROSS_HALF * radius
    return np.minimum(np.maximum(u - length, v - half), np.maximum(u - half, v - length))


def coverage(
    shape: str, tracks: Tracks, actor: int, height: int, width: int, outline: Distance | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage in 0..1 of one actor inside a square window that follows it.

    Args:
        shape: word of the shape.
        tracks: of all actors.
        actor: its index.
        height, width: canvas in pixels.
        outline: signed distance (u, v, radius) that is drawn instead of the shape, within the triangle's reach.

    Returns:
        Array (frames, side, side) float32, and the window's rows (frames, side) and columns (frames, side).
    """
    x, y, radius, angle = (column[actor] for column in (tracks.x, tracks.y, tracks.radius, tracks.angle))
    side = min(int(2 * (_REACH * float(radius.max()) + 2)) + 1, height, width)
    span = np.arange(side)
    rows = np.clip(np.round(y - side / 2), 0, height - side).astype(np.intp)[:, None] + span
    columns = np.clip(np.round(x - side / 2), 0, width - side).astype(np.intp)[:, None] + span
    dv = (rows + np.float32(0.5) - y[:, None]).astype(np.float32)[:, :, None]
    du = (columns + np.float32(0.5) - x[:, None]).astype(np.float32)[:, None, :]
    if np.any(angle):
        cos, sin = np.cos(angle).astype(np.float32)[:, None, None], np.sin(angle).astype(np.float32)[:, None, None]
        du, dv = cos * du + sin * dv, cos * dv - sin * du
    drawn = partial(shape_distance, shape) if outline is None else outline
    distance = drawn(du, dv, radius.astype(np.float32)[:, None, None])
    return np.clip(np.float32(0.5) - distance, 0.0, 1.0), rows, columns


def render_clip(
    scene: Scene, tracks: Tracks, height: int, width: int, outlines: Sequence[Distance | None] = ()
) -> np.ndarray:
    """Draw one clip.

    Args:
        scene: what to show; later actors are in front.
        tracks: paths from :func:`genkit.world.scene.lay_out`.
        height, width: canvas in pixels.
        outlines: what is drawn instead of the actors' shapes, None for the shape; see :func:`coverage`.

    Returns:
        uint8 array (frames, height, width, 3).
    """
    frames = tracks.x.shape[1]
    if tracks.x.shape[0] != len(scene.actors):
        raise UsageError(f"{len(scene.actors)} actors need as many tracks, got {tracks.x.shape[0]}")
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    clip[:] = np.array(BACKGROUNDS[scene.background], dtype=np.uint8)
    for number, actor in enumerate(scene.actors):
        outline = outlines[number] if number < len(outlines) else None
        alpha, rows, columns = coverage(actor.shape, tracks, number, height, width, outline)
        ground = clip[0, 0, 0].astype(np.float32) if number == 0 else None
        colour = np.array(COLOURS[actor.colour], dtype=np.float32)
        side = alpha.shape[1]
        # Adding a half rounds to nearest. The first actor meets nothing but background.
        first = None if ground is None else ground + np.float32(0.5) + alpha[..., None] * (colour - ground)
        for frame, (top, left) in enumerate(zip(rows[:, 0], columns[:, 0], strict=True)):
            window = clip[frame, top : top + side, left : left + side]
            if first is not None:
                window[:] = first[frame]
            else:
                window[:] = window + alpha[frame, ..., None] * (colour - window) + np.float32(0.5)
    return clip
