"""VMAF by the package ``vmaf-torch``: Netflix's full-reference quality of video, version 0.6.1.

The model was fitted to television at 1920x1080 seen from three heights. On smaller frames it is a number to compare
variants with, not a grade; on clips whose content moved it says little, as every full-reference metric.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.evaluation.metrics import as_unit

#: Below this four halvings of the frame leave nothing to compare.
LEAST = 32
#: Rec. 709 luma of red, green, blue, and its range in 8 bits: what decoders of high-definition video hand to VMAF.
_LUMA, _BLACK, _SPAN = (0.2126, 0.7152, 0.0722), 16.0, 219.0


def why_not() -> str | None:
    """Why there is no VMAF here; None when there is."""
    if importlib.util.find_spec("vmaf_torch") is None:
        return "the package vmaf-torch is not installed: pip install 'genkit[metrics]'"
    return None


@cache
def _model() -> Any:
    reason = why_not()
    if reason is not None:
        raise UnsupportedError(f"vmaf: {reason}")
    from vmaf_torch import VMAF

    return VMAF(clip_score=True).eval()


def luma(frames: np.ndarray) -> np.ndarray:
    """Luma (T, H, W) of frames (T, H, W, 3) in [0, 1], 16 = black to 235 = white."""
    return _BLACK + _SPAN * (frames @ np.array(_LUMA))


def vmaf_frames(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """VMAF of every frame of a clip, (T,), 0 to 100; equal clips have 97 to 100, by how much they move.

    Args:
        clip, reference: (T, H, W, 3), uint8 or floats in [0, 1], of equal shape; two frames or more, at least 32 x 32.

    Raises:
        UsageError: shapes. UnsupportedError: the package is missing.
    """
    one, other = as_unit(clip, "clip"), as_unit(reference, "reference")
    if one.shape != other.shape or one.shape[-1] != 3 or min(one.shape[1:3]) < LEAST or len(one) < 2:
        raise UsageError(
            f"vmaf needs two clips (T, H, W, 3) of equal shape, two frames or more of {LEAST}x{LEAST} or larger; got "
            f"{one.shape}, {other.shape}"
        )
    pair = [torch.from_numpy(luma(each)).float()[:, None] for each in (other, one)]
    with torch.no_grad():
        return _model()(*pair)[:, 0].double().numpy()
