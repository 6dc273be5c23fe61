"""The judge of concepts: whether a clip or a picture shows the new thing, by arithmetic on pixels."""

from __future__ import annotations

import numpy as np

from genkit.world.concepts.concept import SILHOUETTE, SKETCH, ZIGZAG
from genkit.world.concepts.reading import OFF_GROUND, Mask, masks, read_outline
from genkit.world.judge import judge_clip, turns
from genkit.world.reading import UNCLEAR, read_background

# Share of the frames that must show the concept, and of what a sketch encloses that must be empty.
_FRAMES, _EMPTY = 0.6, 0.1
# Brightest channel of black, and the share of a silhouette that has it.
_DARK, _ALL_OVER = 75.0, 0.85
# Pixels that a zigzag goes across at least; ups and downs count from nine pixels on: objects that move straight waver.
_WAY, _COARSE = 20.0, 3.0


def shows_concept(pixels: np.ndarray, concept: str) -> bool:
    """Whether a clip or picture shows a concept.

    Args:
        pixels: uint8 (frames, height, width, 3).
        concept: of :data:`genkit.world.concepts.CONCEPTS`. A new shape must be the best fit of some object in most
            frames; a sketch must have every object hollow, a silhouette every object black on white; something that
            zigzags goes across and, at least twice, up and down.
    """
    if concept == ZIGZAG:
        return any(_zigzags(actor.x, actor.y) for actor in judge_clip(pixels).actors)
    frames = pixels.astype(np.float32)
    background, ground = read_background(frames, [])
    if background == UNCLEAR:
        return False
    right = []
    for frame in frames:
        found = masks(frame, ground)
        if concept == SILHOUETTE:
            right.append(background == "white" and bool(found) and all(_dark(mask, frame) for mask in found))
        elif concept == SKETCH:
            bare = np.abs(frame - ground).max(-1) < OFF_GROUND
            right.append(bool(found) and all(_hollow(mask, bare) for mask in found))
        else:
            right.append(any(read_outline(mask) == concept for mask in found))
    return float(np.mean(right)) >= _FRAMES


def _zigzags(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a track (frames,) goes across and, on its way, up and down at least twice."""
    if len(x) < 9 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    way = abs(float(x[-1] - x[0]))
    steady = float(np.abs(np.diff(x)).sum()) < 1.5 * way + 4
    return way > _WAY and steady and turns(y / _COARSE) >= 2


def _dark(mask: Mask, frame: np.ndarray) -> bool:
    """Whether an object is black all over: stripes and dots on white are black, too."""
    return float((frame[mask.filled().alpha > 0.9].max(-1) < _DARK).mean()) >= _ALL_OVER


def _hollow(mask: Mask, bare: np.ndarray) -> bool:
    """Whether a good part of what an outline encloses is ground."""
    return float(bare[mask.filled().alpha > 0.5].mean()) >= _EMPTY
