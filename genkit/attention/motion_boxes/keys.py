"""Boxes at key frames, and the boxes of all frames between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from genkit.attention.motion_boxes.control import check_boxes
from genkit.errors import UsageError, explain


def interpolated(keys: Mapping[int, Sequence[float]], frames: int, what: str = "boxes") -> torch.Tensor:
    """Boxes of every frame of a clip: on a straight line between key frames, and as they are before the first and after
    the last one.

    Args:
        keys: frame, from 0 -> (left, top, right, bottom) as shares of the canvas. Two or more for a clip.
        frames: of the clip. what: names the track in errors.

    Returns:
        (frames, 4) float64.

    Raises:
        UsageError: too few key frames, one beyond the clip, or a box that is none.

    Example:
        >>> interpolated({0: (0.0, 0.0, 0.5, 0.5), 4: (0.5, 0.5, 1.0, 1.0)}, 5)[2].tolist()
        [0.25, 0.25, 0.75, 0.75]
    """
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < frames:
            allowed = f"a whole number from 0 to {frames - 1}, the clip's last frame"
            raise UsageError(explain(f"{what}: key frame", key, allowed))
    if len(keys) < min(frames, 2):
        raise UsageError(
            f"{what}: a track needs boxes at two frames or more, got {len(keys)}; for an object that stays give the "
            f"same box at frame 0 and at frame {frames - 1}"
        )
    places = sorted(keys)
    rows = check_boxes(torch.tensor([[float(side) for side in keys[place]] for place in places]).double())[0]
    clock = torch.arange(frames, dtype=torch.float64)
    marks = torch.tensor(places, dtype=torch.float64)
    after = torch.searchsorted(marks, clock).clamp(0, len(places) - 1)
    before = (after - 1).clamp(0)
    gap = (marks[after] - marks[before]).clamp(min=1e-9)
    share = ((clock - marks[before]) / gap).clamp(0, 1)[:, None]
    return rows[before] + share * (rows[after] - rows[before])
