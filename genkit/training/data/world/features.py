"""What the toy world knows of every latent position and audio token: ground truth for REPA heads.

For every latent position and frame, which object is nearest, where its centre lies and how it moves; for every audio
token, which event sounds and which comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from genkit.world.scene import Scene, Tracks
from genkit.world.sound import DECAYS, Event
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES

FEATURES = 1 + 2 + 1 + 3 + 3 + len(SHAPES) + len(MOTIONS) + len(SIZES)
SOUND_FEATURES = 2 * (1 + len(DECAYS) + 1 + 1)
_NEARNESS = 0.2


def scene_features(scene: Scene, tracks: Tracks, height: int, width: int, cell: int = 16, step: int = 4) -> np.ndarray:
    """Ground truth per latent position.

    Args:
        scene, tracks: what is shown and where.
        height, width: canvas in pixels.
        cell: pixels per latent position.
        step: frames per latent frame after the first.

    Returns:
        float16 array (T, H, W, FEATURES): nearness of the nearest object's centre, offset to it in canvas units, its
        radius, its colour, the background's colour, one-hot shape, motion and size of that object.
    """
    frames = tracks.x.shape[1]
    latent = 1 + (frames - 1) // step
    groups = [[0]] + [list(range(step * i - step + 1, step * i + 1)) for i in range(1, latent)]
    x, y, radius = (
        np.stack([column[:, g].mean(1) for g in groups], 1) for column in (tracks.x, tracks.y, tracks.radius)
    )
    constant = np.stack([_constants(scene, actor) for actor in range(len(scene.actors))])
    return nearest_features(x, y, radius, constant, height, width, cell)


def nearest_features(
    x: np.ndarray, y: np.ndarray, radius: np.ndarray, constant: np.ndarray, height: int, width: int, cell: int
) -> np.ndarray:
    """Features of the object nearest to every cell of a grid.

    Args:
        x, y, radius: (actors, T) in pixels.
        constant: (actors, C), what is known of each actor.
        height, width: canvas in pixels.
        cell: pixels per position of the grid.

    Returns:
        float16 array (T, H, W, 4 + C): nearness of the object's centre, offset to it in canvas units, its radius, and
        its constants.
    """
    rows = (np.arange(height // cell) + 0.5) * cell
    columns = (np.arange(width // cell) + 0.5) * cell
    dx = x[:, :, None, None] - columns[None, None, None, :]
    dy = y[:, :, None, None] - rows[None, None, :, None]
    distance = np.sqrt(dx**2 + dy**2)
    nearest = distance.argmin(0)
    pick = lambda values: np.take_along_axis(np.broadcast_to(values, distance.shape), nearest[None], 0)[0]  # noqa: E731
    reach = np.broadcast_to(radius[:, :, None, None], distance.shape)
    local = [
        np.exp(-0.5 * (pick(distance) / pick(reach)) ** 2) * 2,
        pick(np.broadcast_to(dx, distance.shape)) / 64,
        pick(np.broadcast_to(dy, distance.shape)) / 64,
        pick(reach) / 8 - 2,
    ]
    return np.concatenate([np.stack(local, -1), constant[nearest]], -1).astype(np.float16)


def _constants(scene: Scene, index: int) -> np.ndarray:
    actor = scene.actors[index]
    words = ((SHAPES, actor.shape), (MOTIONS, actor.motion), (SIZES, actor.size))
    return known_words(actor.colour, scene.background, words)


def known_words(colour: str, background: str, words: Iterable[tuple[tuple[str, ...], str]]) -> np.ndarray:
    """Constants of an actor: both colours as RGB, then a one-hot vector for every (vocabulary, word)."""
    tints = [np.array(table[name]) / 64 - 2 for table, name in ((COLOURS, colour), (BACKGROUNDS, background))]
    hot = [np.eye(len(options))[options.index(word)] for options, word in words]
    return np.concatenate([*tints, *(2 * part for part in hot)])


def sound_features(events: Sequence[Event], tokens: int, per_second: float) -> np.ndarray:
    """Ground truth per audio token: the event that sounds and the one to come.

    Args:
        events: in order of time.
        tokens: of the clip.
        per_second: tokens per second.

    Returns:
        float16 array (tokens, SOUND_FEATURES): for each of the two events nearness in time, kind, pitch and pan; zeros
        where there is none.
    """
    middle = (np.arange(tokens) + 0.5) / per_second
    found = np.zeros((tokens, 2, SOUND_FEATURES // 2))
    times = np.array([event.time for event in events])
    following = np.searchsorted(times, middle)
    for token, index in enumerate(following):
        for place, number in ((0, index - 1), (1, index)):
            if 0 <= number < len(events):
                event = events[number]
                kind = 2 * np.eye(len(DECAYS))[list(DECAYS).index(event.kind)]
                near = 2 * np.exp(-abs(middle[token] - event.time) / _NEARNESS)
                found[token, place] = [near, *kind, np.log2(event.pitch / 800), 2 * event.pan]
    return found.reshape(tokens, -1).astype(np.float16)
