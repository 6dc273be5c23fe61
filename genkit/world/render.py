"""Pictures of the toy world: anti-aliased shapes by signed distance, many clips at once."""

from __future__ import annotations

import numpy as np

from genkit.errors import UsageError
from genkit.world.scene import Scene, Tracks
from genkit.world.vocabulary import BACKGROUNDS, COLOURS

_SQRT3 = np.sqrt(3.0, dtype=np.float32)
# Proportions that give every shape about the area of a disc of the same radius.
_SQUARE_HALF = 0.886
_TRIANGLE_INRADIUS = 0.778
_CROSS_LENGTH, _CROSS_HALF = 1.12, 0.42


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance in pixels (negative inside) of local coordinates ``u`` (right) and ``v`` (down)."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - _SQUARE_HALF * radius
    if shape == "triangle":
        slanted = 0.5 * (_SQRT3 * np.abs(u) - v)
        return np.maximum(v, slanted) - _TRIANGLE_INRADIUS * radius
    u, v = np.abs(u), np.abs(v)
    length, half = _CROSS_LENGTH * radius, _CROSS_HALF * radius
    return np.minimum(np.maximum(u - length, v - half), np.maximum(u - half, v - length))


def coverage(shape: str, tracks: Tracks, actor: int, height: int, width: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Coverage in 0..1 of one actor inside the box it ever touches.

    Returns:
        Array (frames, y1 - y0, x1 - x0) float32 and the box (y0, y1, x0, x1) in pixels.
    """
    x, y, radius, angle = (column[actor] for column in (tracks.x, tracks.y, tracks.radius, tracks.angle))
    reach = 1.7 * radius + 2.0
    x0, x1 = max(int((x - reach).min()), 0), min(int((x + reach).max()) + 1, width)
    y0, y1 = max(int((y - reach).min()), 0), min(int((y + reach).max()) + 1, height)
    column = [part.astype(np.float32)[:, None, None] for part in (x, y, radius, angle)]
    du = np.arange(x0, x1, dtype=np.float32)[None, None, :] + np.float32(0.5) - column[0]
    dv = np.arange(y0, y1, dtype=np.float32)[None, :, None] + np.float32(0.5) - column[1]
    if np.any(angle):
        cos, sin = np.cos(column[3]), np.sin(column[3])
        du, dv = cos * du + sin * dv, cos * dv - sin * du
    return np.clip(np.float32(0.5) - _distance(shape, du, dv, column[2]), 0.0, 1.0), (y0, y1, x0, x1)


def render_clip(scene: Scene, tracks: Tracks, height: int, width: int) -> np.ndarray:
    """Draw one clip.

    Args:
        scene: what to show; later actors are in front.
        tracks: paths from :func:`genkit.world.scene.lay_out`.
        height, width: canvas in pixels.

    Returns:
        uint8 array (frames, height, width, 3).
    """
    frames = tracks.x.shape[1]
    if tracks.x.shape[0] != len(scene.actors):
        raise UsageError(f"{len(scene.actors)} actors need as many tracks, got {tracks.x.shape[0]}")
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    clip[:] = np.array(BACKGROUNDS[scene.background], dtype=np.uint8)
    for index, actor in enumerate(scene.actors):
        alpha, (y0, y1, x0, x1) = coverage(actor.shape, tracks, index, height, width)
        window = clip[:, y0:y1, x0:x1]
        colour = np.array(COLOURS[actor.colour], dtype=np.float32)
        # One channel at a time keeps the working set in cache; 0.5 rounds to nearest.
        for channel in range(3):
            below = window[..., channel].astype(np.float32)
            window[..., channel] = (below + alpha * (colour[channel] - below) + np.float32(0.5)).astype(np.uint8)
    return clip
