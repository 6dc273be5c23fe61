"""Which frames a frame sees: anchors that all share, and a window of its own (LVSA)."""

from __future__ import annotations

from functools import lru_cache

import torch


def anchors(frames: int, first: int, period: int, offset: int = 0) -> set[int]:
    """The first frames, and a grid of the period moved by ``offset`` that wraps around; period 0 = no grid."""
    grid = {(offset + i * period) % frames for i in range(-(-frames // period))} if period else set()
    return set(range(min(first, frames))) | grid


def auto_period(frames: int, trained: int, window: int, first: int) -> int:
    """The period at which a row holds about as many frames as the model was trained on; 1 up to that length.

    Of LVSA's code: the longest period that leaves enough anchors, or the one that the budget allows if it is longer.
    """
    budget = max(first + 1, trained)
    if frames <= budget:
        return 1
    local = 2 * window + 1
    least = max(first, budget - min(local, frames))
    fitting = [p for p in range(1, frames + 1) if len(anchors(frames, first, p)) >= least]
    own = 2 * window + first
    return max(max(fitting, default=1), -(-(frames - own) // max(budget - own, 1)))


def seen(frame: int, frames: int, window: int, shared: set[int]) -> list[int]:
    """The frames that one sees, ascending: anchors, and a window that is moved inward at the ends and then widened,
    left and right in turns, until it holds ``2 window + 1`` frames that are no anchors, or all: as many for every
    frame. Its own is always among them."""
    low = min(max(frame - window, 0), max(frames - 1 - 2 * window, 0))
    high = min(low + 2 * window, frames - 1)
    wanted = min(2 * window + 1, frames - len(shared))
    own = set(range(low, high + 1))
    left = True
    while len(own - shared) < wanted:
        if left and low > 0:
            low -= 1
            own.add(low)
        elif not left and high < frames - 1:
            high += 1
            own.add(high)
        left = not left
    return sorted(own | shared)


@lru_cache(maxsize=256)
def visible(frames: int, window: int, first: int, period: int, offset: int) -> torch.Tensor:
    """Frames that see each other, bool (f, f), row = query frame. Shared: not to be written to."""
    shared = anchors(frames, first, period, offset)
    found = torch.zeros(frames, frames, dtype=torch.bool)
    for frame in range(frames):
        found[frame, seen(frame, frames, window, shared)] = True
    return found
