"""Words for how far an output is from the baseline's of the same seed, fitted on toy-video.

``python -m benchmarks bands`` measures how often they agree with what the toy world's judge sees.
"""

from __future__ import annotations

from collections.abc import Mapping

SAME, KEPT, DIVERGED = "same trajectory", "scene kept", "diverged"
BANDS = (SAME, KEPT, DIVERGED)
#: Smallest mean SSIM of a clip or picture for each band; below both it has diverged.
SSIM_SAME, SSIM_KEPT = 0.95, 0.80
MEANING = {
    SAME: "the same things at the same places: differences are for the pixel peeper",
    KEPT: "the same things, moved or drawn otherwise",
    DIVERGED: "another picture; only the prompt is the same",
}


def band(values: Mapping[str, float]) -> str | None:
    """The band of an output by its distances; None without a mean SSIM."""
    likeness = values.get("ssim")
    if likeness is None:
        return None
    return SAME if likeness >= SSIM_SAME else KEPT if likeness >= SSIM_KEPT else DIVERGED
