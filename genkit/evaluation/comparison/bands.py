"""Words for how far an output is from the baseline's of the same seed, fitted on toy-video.

``python -m benchmarks bands`` measures how often they agree with what the toy world's judge sees.
"""

from __future__ import annotations

from collections.abc import Mapping

SAME, KEPT, DIVERGED = "same trajectory", "scene kept", "diverged"
BANDS = (SAME, KEPT, DIVERGED)
#: Smallest mean PSNR in dB for the first two bands, and smallest SSIM of the frame that is furthest off: a clip that
#: breaks down for a few frames has good means.
PSNR_SAME, WORST_SAME = 25.5, 0.88
PSNR_KEPT, WORST_KEPT = 21.0, 0.75
MEANING = {
    SAME: "the same things at the same places: differences are for the pixel peeper",
    KEPT: "the same things, moved or drawn otherwise",
    DIVERGED: "another picture; only the prompt is the same",
}


def band(values: Mapping[str, float]) -> str | None:
    """The band of an output by its distances ``psnr`` and ``ssim_worst``; None without them."""
    mean, worst = values.get("psnr"), values.get("ssim_worst")
    if mean is None or worst is None:
        return None
    if mean >= PSNR_SAME and worst >= WORST_SAME:
        return SAME
    return KEPT if mean >= PSNR_KEPT and worst >= WORST_KEPT else DIVERGED
