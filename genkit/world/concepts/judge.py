"""The judge of concepts: whether a clip or a picture shows the new thing, by arithmetic on pixels."""

from __future__ import annotations

import numpy as np

from genkit.world.concepts.concept import SKETCH
from genkit.world.concepts.reading import OFF_GROUND, Mask, masks, read_outline
from genkit.world.reading import UNCLEAR, read_background

# Share of the frames that must show the concept, and of what a sketch encloses that must be empty.
_FRAMES, _EMPTY = 0.6, 0.1


def shows_concept(pixels: np.ndarray, concept: str) -> bool:
    """Whether a clip or picture shows a concept.

    Args:
        pixels: uint8 (frames, height, width, 3).
        concept: of :data:`genkit.world.concepts.CONCEPTS`. A new shape must be the best fit of some object in most
            frames; a sketch must have every object hollow.
    """
    frames = pixels.astype(np.float32)
    background, ground = read_background(frames, [])
    if background == UNCLEAR:
        return False
    right = []
    for frame in frames:
        found = masks(frame, ground)
        if concept == SKETCH:
            bare = np.abs(frame - ground).max(-1) < OFF_GROUND
            right.append(bool(found) and all(_hollow(mask, bare) for mask in found))
        else:
            right.append(any(read_outline(mask) == concept for mask in found))
    return float(np.mean(right)) >= _FRAMES


def _hollow(mask: Mask, bare: np.ndarray) -> bool:
    """Whether a good part of what an outline encloses is ground."""
    return float(bare[mask.filled().alpha > 0.5].mean()) >= _EMPTY
