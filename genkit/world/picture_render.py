"""Drawing still pictures: the shapes of :mod:`genkit.world.render` with plain, striped and dotted textures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genkit.errors import UsageError
from genkit.world.picture_scene import Picture, Placement
from genkit.world.render import Distance, coverage
from genkit.world.vocabulary import BACKGROUNDS, COLOURS

#: Pixels from stripe to stripe and from dot to dot. The pattern lies still on the canvas, objects are windows on it.
PITCH = 8
_STRIPE_HALF, _DOT_RADIUS = 1.5, 2.4


def ink_of(background: str) -> np.ndarray:
    """RGB of stripes and dots, float32 (3,): white, on white backgrounds black."""
    return np.array(BACKGROUNDS["black" if background == "white" else "white"], dtype=np.float32)


def pattern(texture: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Share of ink in 0..1 at pixels.

    Args:
        texture: ``plain``, ``striped`` (upright stripes) or ``dotted``.
        rows, columns: indices (side,) of the pixels.

    Returns:
        float32 (side, side).
    """
    u, v = ((index + 0.5) % PITCH - PITCH / 2 for index in (columns[None, :], rows[:, None]))
    if texture == "striped":
        distance = np.abs(u) - _STRIPE_HALF + 0 * v
    elif texture == "dotted":
        distance = np.hypot(u, v) - _DOT_RADIUS
    else:
        distance = np.full((len(rows), len(columns)), 1.0)
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def render_picture(
    picture: Picture, placement: Placement, height: int, width: int, outlines: Sequence[Distance | None] = ()
) -> np.ndarray:
    """Draw one picture.

    Args:
        picture: what to show; later actors are in front.
        placement: from :func:`genkit.world.picture_scene.draw_picture` for this canvas.
        height, width: canvas in pixels.
        outlines: what is drawn instead of the actors' shapes, None for the shape; see
            :func:`genkit.world.render.coverage`.

    Returns:
        uint8 array (height, width, 3).
    """
    if len(placement.x) != len(picture.actors):
        raise UsageError(f"{len(picture.actors)} actors need as many places, got {len(placement.x)}")
    canvas = np.empty((height, width, 3), dtype=np.float32)
    canvas[:] = np.array(BACKGROUNDS[picture.background], dtype=np.float32)
    ink = ink_of(picture.background)
    for number, actor in enumerate(picture.actors):
        outline = outlines[number] if number < len(outlines) else None
        alpha, rows, columns = coverage(actor.shape, placement.tracks, number, height, width, outline)
        share = pattern(actor.texture, rows[0], columns[0])[..., None]
        colour = np.array(COLOURS[actor.colour], dtype=np.float32)
        window = canvas[rows[0, 0] : rows[0, -1] + 1, columns[0, 0] : columns[0, -1] + 1]
        window += alpha[0, ..., None] * (colour + share * (ink - colour) - window)
    return np.round(canvas).astype(np.uint8)
