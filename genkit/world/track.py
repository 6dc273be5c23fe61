"""Free paths: objects that go along boxes at key frames, the way users draw them, and boxes as tracks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.render import SHAPE_EXTENTS
from genkit.world.scene import MARGIN, Scene, Tracks
from genkit.world.vocabulary import DIRECTIONS, RADII

Array = np.ndarray
#: How a path is drawn: straight from key to key, or along an arc of a circle.
KEYS, ARC = "keys", "arc"
# Pixels a frame that an object goes at most, and radii that a changing size runs through: those of the world's motions.
_SPEED = 5.0
_RADII = (11.5, 27.0)
_MOST_KEYS = 4


def draw_track(
    scene: Scene,
    frames: int,
    height: int,
    width: int,
    rng: np.random.Generator,
    kind: str = KEYS,
    changing: float = 0.3,
) -> Tracks:
    """A free path of a scene's one actor, inside the canvas; its motion word counts nothing here.

    Args:
        scene: with one actor.
        frames: number of frames, at least 1.
        height, width: canvas in pixels.
        rng: source of randomness.
        kind: ``"keys"``: straight lines between two to four places; ``"arc"``: a quarter to a half of a circle.
        changing: share of the paths on which the size changes, of an actor of medium size.

    Returns:
        Tracks of shape (1, frames), not turned.
    """
    if len(scene.actors) != 1 or kind not in (KEYS, ARC):
        raise UsageError(explain("path", f"{kind} of {len(scene.actors)} actors", f"{KEYS} or {ARC} of one actor"))
    actor = scene.actors[0]
    clock = np.arange(frames, dtype=np.float64)
    most = min(_MOST_KEYS, frames)
    count = most if most < 2 else int(rng.integers(2, most + 1))
    keys = np.array([0.0])
    if count > 1:
        between = np.sort(rng.choice(np.arange(1, frames - 1), size=count - 2, replace=False))
        keys = np.array([0.0, *between, frames - 1.0])
    if actor.size == "medium" and rng.random() < changing:
        radii = np.interp(clock, keys, rng.uniform(*_RADII, size=len(keys)))
    else:
        radii = np.full(frames, rng.uniform(*RADII[actor.size]))
    left, right, top, bottom = (side * radii.max() + MARGIN for side in SHAPE_EXTENTS[actor.shape])
    low, high = np.array([left, top]), np.array([width - right, height - bottom])
    low, high = np.minimum(low, (low + high) / 2), np.maximum(high, (low + high) / 2)
    places = _arc(clock, low, high, rng) if kind == ARC else _lines(clock, keys, low, high, rng)
    x, y, radius, angle = np.stack([*places.T, radii, np.zeros(frames)]).astype(np.float32)[:, None]
    return Tracks(x, y, radius, angle, ((),))


def _lines(clock: Array, keys: Array, low: Array, high: Array, rng: np.random.Generator) -> Array:
    places = [rng.uniform(low, high)]
    for gap in np.diff(keys):
        step = rng.uniform(low, high) - places[-1]
        places.append(places[-1] + step * min(1.0, _SPEED * gap / max(float(np.hypot(*step)), 1e-9)))
    return np.stack([np.interp(clock, keys, column) for column in np.array(places).T], -1)


def _arc(clock: Array, low: Array, high: Array, rng: np.random.Generator) -> Array:
    progress = clock / max(len(clock) - 1, 1)
    way = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0) * np.pi
    room = float((high - low).min()) / 2
    radius = min(room, _SPEED * max(len(clock) - 1, 1) / abs(way)) * rng.uniform(0.7, 1.0)
    middle = rng.uniform(low + radius, high - radius) if room > 0 else (low + high) / 2
    turn = rng.uniform(0, 2 * np.pi) + way * progress
    return middle + radius * np.stack([np.cos(turn), np.sin(turn)], -1)


def direction_of(tracks: Tracks) -> str:
    """The motion word that says most of a path: the direction from its first to its last place, or ``"still"``."""
    across, down = float(tracks.x[0, -1] - tracks.x[0, 0]), float(tracks.y[0, -1] - tracks.y[0, 0])
    if np.hypot(across, down) < 10.0:
        return "still"
    angle = np.arctan2(down, across)
    return max(DIRECTIONS, key=lambda name: np.cos(angle - np.arctan2(*DIRECTIONS[name][::-1])))


def with_motion(scene: Scene, motion: str) -> Scene:
    """A scene whose one actor has another motion word."""
    return replace(scene, actors=(replace(scene.actors[0], motion=motion),))


def box_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4), each (left, top, right, bottom); 0 where one is NaN."""
    inner = np.minimum(one, other)[..., 2:] - np.maximum(one, other)[..., :2]
    both = np.prod(np.clip(inner, 0, None), -1)
    areas = [np.prod(box[..., 2:] - box[..., :2], -1) for box in (one, other)]
    return np.nan_to_num(both / np.maximum(areas[0] + areas[1] - both, 1e-12))
