"""Outlines and a manner of drawing that no shipped model was trained on, as signed distances."""

from __future__ import annotations

import numpy as np

from genkit.world.render import Distance

_OUTER, _INNER = 1.16, 0.6
_LOBE = 0.665
_MOON, _BITE, _BITE_AWAY = 1.25, 0.95, 0.7
#: Width in pixels of the line a sketch is drawn with.
LINE = 4.0


def ring(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """A disc with a round hole of half its width; its area is that of a disc of ``radius``."""
    away = np.sqrt(u * u + v * v)
    return np.maximum(away - np.float32(_OUTER) * radius, np.float32(_INNER) * radius - away)


def heart(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """A square on its tip and two discs on its upper edges."""
    across, down = np.abs(u), v + np.float32(0.12) * radius
    half = np.float32(_LOBE) * radius
    offset = half / np.float32(np.sqrt(2))
    square = (across + np.abs(down)) / np.float32(np.sqrt(2)) - half
    return np.minimum(square, np.hypot(across - offset, down + offset) - half)


def crescent(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """A disc with a bite out of its right side."""
    left = np.hypot(u - np.float32(0.25) * radius, v) - np.float32(_MOON) * radius
    return np.maximum(left, np.float32(_BITE) * radius - np.hypot(u - np.float32(_BITE_AWAY) * radius, v))


def hollow(distance: Distance) -> Distance:
    """The same outline as a line of :data:`LINE` pixels inside its edge, with nothing within."""

    def line(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
        edge = distance(u, v, radius)
        return np.maximum(edge, -np.float32(LINE) - edge)

    return line


OUTLINES: dict[str, Distance] = {"ring": ring, "heart": heart, "crescent": crescent}
