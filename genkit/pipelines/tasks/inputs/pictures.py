"""Frames and masks as Pillow pictures, which every pipeline reads."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_pictures(frames: np.ndarray) -> list[Any]:
    """uint8 (T, H, W, 3) as Pillow pictures."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def as_masks(inside: np.ndarray) -> list[Any]:
    """bool (T, H, W) as grey Pillow pictures, white where something is made."""
    from PIL import Image

    return [Image.fromarray(frame.astype(np.uint8) * 255) for frame in inside]
