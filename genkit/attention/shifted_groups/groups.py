"""Which frames see each other in groups, and in how many layers every frame reaches every other."""

from __future__ import annotations

import torch


def visible_frames(frames: int, group: int, shifted: bool, sink: bool, sink_rows: bool) -> torch.Tensor:
    """Frames that one kind of heads sees, bool (f, f), row = query frame.

    Args:
        frames: f, frames of the grid.
        group: G, frames of a group.
        shifted: cut at ``G // 2 + m G`` instead of ``m G``. Nothing wraps: the end groups are shorter.
        sink: frame 0 is seen by all frames.
        sink_rows: frame 0 sees all frames.
    """
    place = torch.arange(frames)
    number = (place - group // 2) // group if shifted else place // group
    seen = number[:, None] == number
    if sink:
        seen[:, 0] = True
    if sink_rows:
        seen[0] = True
    return seen


def layers_to_reach(seen: torch.Tensor) -> int | None:
    """Layers after which every frame has influenced every other, when heads of all kinds (kinds, f, f) are mixed in
    every layer; None = never."""
    step = seen.any(0).float()
    reached, layers = step, 1
    while not bool((reached > 0).all()):
        further = ((reached @ step) > 0).float()
        if torch.equal(further, reached):
            return None
        reached, layers = further, layers + 1
    return layers
