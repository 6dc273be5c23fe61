"""Per-axis window tables: which keys of an axis a query of that axis sees, in O(length) integers.

The definitions are those of generalized neighborhood attention (arXiv 2504.16922): stride, dilation and causality per
axis, windows shifted inward at the borders so that every query keeps its full window. Axes multiply: a pair of grid
tokens is visible when it is visible on every axis. Everything here is plain integers; intervals are half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from genkit.errors import UsageError, explain

BORDERS = ("shift", "clip")


@dataclass(frozen=True)
class AxisWindow:
    """The window of one axis of a known length.

    Args:
        length: tokens on the axis, L.
        size: keys a query sees, w; with border ``"shift"`` it must satisfy ``w * dilation <= L``.
        stride: s neighbouring queries share one window, ``1 <= s <= w``; counts inside a dilation group.
        dilation: d, the step inside the window. Coordinate x belongs to group ``x % d`` at position ``x // d``.
        causal: keys after the query are hidden; the window then ends at the query.
        border: ``"shift"`` moves a window that would cross the border inward, so it keeps all w keys; ``"clip"``
            cuts it.
    """

    length: int
    size: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    border: str = "shift"

    def __post_init__(self):
        if self.border not in BORDERS:
            raise UsageError(explain("border", self.border, BORDERS))
        if self.size < 1 or (self.border == "shift" and self.size > self.length):
            raise UsageError(explain("window size", self.size, f"1 to {self.length}, the length of the axis"))
        if not 1 <= self.stride <= self.size:
            raise UsageError(explain("window stride", self.stride, f"1 to {self.size}, the size of the window"))
        most = max(1, self.length // self.size) if self.border == "shift" else self.length
        if not 1 <= self.dilation <= most:
            raise UsageError(explain("window dilation", self.dilation, f"1 to {most}, so that windows fit the axis"))

    def groups(self) -> list[int]:
        """Length of every dilation group: ``ceil((L - g) / d)``."""
        return [-(-(self.length - g) // self.dilation) for g in range(self.dilation)]

    def interval(self, position: int, group_length: int) -> tuple[int, int]:
        """Window of a query at ``position`` inside a dilation group of ``group_length``."""
        p, w, s = position, self.size, self.stride
        if self.causal:
            leader = min(p // s * s + s - 1, group_length - 1)
            return max(leader - w + 1, 0), p + 1
        leader = min(p // s * s + s // 2, group_length - 1)
        start = leader - w // 2
        if self.border == "clip":
            return max(start, 0), min(start + w, group_length)
        start = min(max(start, 0), group_length - w)
        return start, start + w


@dataclass(frozen=True)
class AxisTable:
    """An :class:`AxisWindow` written out in group-major order, where every window is one interval.

    Args:
        window: what the table was made from.
        groups: lengths of the dilation groups; group g occupies a contiguous run of slots.
        slot: (L) slot of every coordinate: ``offset[group] + position``.
        start, end: (L) visible slots ``[start, end)`` of the query in every slot.
    """

    window: AxisWindow
    groups: tuple[int, ...]
    slot: tuple[int, ...]
    start: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """First slot of every dilation group."""
        first, found = 0, []
        for length in self.groups:
            found.append(first)
            first += length
        return found

    def keys(self, coordinate: int) -> list[int]:
        """Visible key coordinates of a query coordinate, ascending. For pictures and tests."""
        slot = self.slot[coordinate]
        low, high = self.start[slot], self.end[slot]
        return [x for x in range(len(self.slot)) if low <= self.slot[x] < high]

    def pairs(self) -> int:
        """Number of visible query-key pairs of the axis."""
        return sum(end - start for start, end in zip(self.start, self.end, strict=True))

    @property
    def whole(self) -> bool:
        """Whether every query sees the whole axis."""
        return self.pairs() == self.window.length**2

    def offsets_seen(self) -> dict[int, int]:
        """How often each difference ``key - query`` of coordinates is visible."""
        seen: dict[int, int] = {}
        for query in range(self.window.length):
            for key in self.keys(query):
                seen[key - query] = seen.get(key - query, 0) + 1
        return seen


@lru_cache(maxsize=1024)
def axis_table(window: AxisWindow) -> AxisTable:
    """The table of an axis window; a pure function of its argument."""
    groups = window.groups()
    start: list[int] = []
    end: list[int] = []
    first = 0
    firsts = []
    for length in groups:
        firsts.append(first)
        for position in range(length):
            low, high = window.interval(position, length)
            start.append(first + low)
            end.append(first + high)
        first += length
    d = window.dilation
    slot = tuple(firsts[x % d] + x // d for x in range(window.length))
    return AxisTable(window, tuple(groups), slot, tuple(start), tuple(end))


def rescaled(size: int, stride: int, dilation: int, actual: int, base: int) -> tuple[int, int, int]:
    """Window numbers tuned for an axis of ``base`` tokens, carried over to one of ``actual`` tokens.

    The rule of the Cosmos-Predict2 sparse models: everything scales with the axis, rounds half to even and is clamped
    to what the axis allows.
    """
    ratio = actual / base
    w = min(max(2, round(size * ratio)), actual)
    s = min(max(1, round(stride * ratio)), w)
    d = min(max(1, round(dilation * ratio)), actual // w)
    return w, s, d
