"""Where two results differ, and by how much."""

from __future__ import annotations

import numpy as np

#: Colours of a difference from none to much: dark, accent, light.
_RAMP = np.array([[16, 16, 15], [18, 78, 69], [34, 151, 127], [174, 228, 211], [255, 247, 214]], dtype=np.float32)
#: Difference of a colour value, of 255, that is shown as much.
MUCH = 96.0


def heat(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The difference of two results (T, H, W, 3) as a picture, uint8 (H, W, 3): the mean of colours and frames."""
    apart = np.abs(first.astype(np.float32) - second.astype(np.float32)).mean((0, 3))
    level = np.clip(apart / MUCH, 0, 1) ** 0.5 * (len(_RAMP) - 1)
    low = np.minimum(level.astype(int), len(_RAMP) - 2)
    share = (level - low)[..., None]
    return (_RAMP[low] * (1 - share) + _RAMP[low + 1] * share).round().astype(np.uint8)
