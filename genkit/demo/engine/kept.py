"""How much of what was given is still there in a result."""

from __future__ import annotations

from typing import Any

import numpy as np

from genkit.errors import counted
from genkit.evaluation.metrics import SSIM_WINDOW, psnr, ssim

#: Pixels of a result, all frames together, beyond which SSIM takes longer than anybody waits for a number.
MOST = 1 << 22


def kept(inputs: Any, frames: np.ndarray) -> dict[str, str]:
    """What a result has in common with what it was made from, as titles and values.

    Of an inpainted picture the pixels outside the mask are compared one by one. An edit has no mask: the numbers are
    those of all pixels, also of those that were to change.

    Args:
        inputs: of the request: of ``genkit edit`` with ``frames``, of ``genkit inpaint`` with ``picture`` and ``mask``.
        frames: uint8 (T, H, W, 3), the result.

    Returns:
        nothing for other tasks, and where the sizes differ.

    Cost: about a second for a million pixels.
    """
    if hasattr(inputs, "mask") and hasattr(inputs, "picture"):
        return _outside(inputs.picture, inputs.mask.inside, frames[0])
    before = getattr(inputs, "frames", None)
    return {} if before is None or before.shape != frames.shape else _alike(before, frames)


def _outside(before: np.ndarray, inside: np.ndarray, after: np.ndarray) -> dict[str, str]:
    outside = ~inside
    count = int(outside.sum())
    if before.shape != after.shape or not count:
        return {}
    changed = int((before != after).any(-1)[outside].sum())
    value = f"all {counted(count, 'pixel')} equal" if not changed else f"{changed} of {counted(count, 'pixel')} differ"
    return {"outside the mask": value}


def _alike(before: np.ndarray, after: np.ndarray) -> dict[str, str]:
    if np.array_equal(before, after):
        return {"like the input": "every pixel equal"}
    values = [f"PSNR {psnr(before, after):.1f} dB"]
    if min(before.shape[1:3]) >= SSIM_WINDOW and before[..., 0].size <= MOST:
        values.append(f"SSIM {ssim(before, after):.2f}")
    return {"like the input, all pixels": ", ".join(values)}
