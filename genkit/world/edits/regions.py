"""Which pixels belong to an object of a scene that the world draws."""

from __future__ import annotations

import numpy as np

from genkit.world.picture_scene import Picture
from genkit.world.render import coverage
from genkit.world.scene import Scene, Tracks


def covers(scene: Picture | Scene, tracks: Tracks, actor: int, height: int, width: int) -> np.ndarray:
    """Share of every pixel that an object covers.

    Args:
        scene: what is shown.
        tracks: where its actors are; of a picture ``placement.tracks``.
        actor: index of the object.
        height, width: of the canvas in pixels.

    Returns:
        float32 (frames, height, width) in 0..1, whatever stands in front of the object.
    """
    alpha, rows, columns = coverage(scene.actors[actor].shape, tracks, actor, height, width)
    result = np.zeros((len(alpha), height, width), dtype=np.float32)
    for frame, (top, left) in enumerate(zip(rows[:, 0], columns[:, 0], strict=True)):
        side = alpha.shape[1]
        result[frame, top : top + side, left : left + side] = alpha[frame]
    return result
