"""Where tokens sit: the (T, H, W) grid, text before or after it, and extra segments. Plain arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from genkit.errors import UsageError

GRID = "grid"
TEXT = "text"


@dataclass(frozen=True)
class Segment:
    """A run of consecutive tokens of one kind.

    Args:
        name: ``"grid"`` for the image or video tokens, ``"text"``, ``"audio"``, ``"reference"``, ``"keyframe"``, ...
        length: number of tokens, zero allowed.
    """

    name: str
    length: int

    def __post_init__(self):
        if not self.name:
            raise UsageError("a segment needs a name, for instance 'text'")
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 0:
            raise UsageError(f"segment {self.name!r}: length must be a whole number >= 0, got {self.length!r}")


@dataclass(frozen=True)
class TokenLayout:
    """The order of tokens in one attention sequence.

    Args:
        grid: tokens along time, height and width after patching; ``(0, 0, 0)`` for a sequence without a grid.
        segments: the runs of tokens in sequence order. Exactly one is named ``"grid"`` and has ``T*H*W`` tokens,
            unless the layout has no grid. The grid is in raster order (time slowest, width fastest).
        times: optional time in seconds of every token, for methods that align modalities by time. Follows from
            ``intervals`` when these are given.
        intervals: optional (start, end) in seconds of every token.
        copies: names of segments whose tokens stand at the grid's places once more, in the same order. Methods with
            ``every_grid`` have one pattern for all pairs of these grids; to others a copy is a segment like any other.
    """

    grid: tuple[int, int, int]
    segments: tuple[Segment, ...]
    times: tuple[float, ...] | None = None
    intervals: tuple[tuple[float, float], ...] | None = None
    copies: tuple[str, ...] = ()

    def __post_init__(self):
        if self.intervals is not None:
            if len(self.intervals) != self.length:
                raise UsageError(
                    f"intervals must give one (start, end) per token: {self.length} tokens, {len(self.intervals)} given"
                )
            if self.times is None:
                object.__setattr__(self, "times", tuple((start + end) / 2 for start, end in self.intervals))
        if len(self.grid) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in self.grid):
            raise UsageError(f"grid must be three whole numbers (T, H, W) >= 0, got {self.grid!r}")
        names = [segment.name for segment in self.segments]
        if len(set(names)) != len(names):
            raise UsageError(f"segment names must differ, got {names}")
        tokens = prod(self.grid)
        found = next((segment.length for segment in self.segments if segment.name == GRID), 0)
        if found != tokens:
            raise UsageError(f"grid {self.grid} has {tokens} tokens, but the segment named 'grid' has {found}")
        for name in self.copies:
            span = self.span(name)
            if name == GRID or span is None or span[1] - span[0] != tokens:
                told = [f"{segment.length} {segment.name}" for segment in self.segments]
                raise UsageError(
                    f"copies must name further segments of {tokens} tokens, as many as the grid {self.grid} has; got "
                    f"{name!r} among {', '.join(told)}"
                )
        if len(set(self.copies)) != len(self.copies):
            raise UsageError(f"copies must differ, got {list(self.copies)}")
        if self.times is not None and len(self.times) != self.length:
            raise UsageError(f"times must give one value per token: {self.length} tokens, {len(self.times)} times")

    def __hash__(self) -> int:
        """Computed once: with times it takes in thousands of numbers, and layouts are looked up in every call."""
        if "_hash" not in self.__dict__:
            value = hash((self.grid, self.segments, self.times, self.intervals, self.copies))
            object.__setattr__(self, "_hash", value)
        return self.__dict__["_hash"]

    def __getstate__(self) -> dict[str, object]:
        """Without the hash, which is another one in another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @classmethod
    def of_grid(cls, t: int, h: int, w: int, text: int = 0, text_first: bool = False) -> TokenLayout:
        """A grid with ``text`` tokens after it (before it with ``text_first``); no text segment when ``text`` is 0."""
        grid = Segment(GRID, t * h * w)
        if not text:
            return cls((t, h, w), (grid,))
        words = Segment(TEXT, text)
        return cls((t, h, w), (words, grid) if text_first else (grid, words))

    @classmethod
    def sequence(cls, length: int, name: str = TEXT) -> TokenLayout:
        """A plain sequence without a grid, such as the text keys of cross-attention or audio tokens."""
        return cls((0, 0, 0), (Segment(name, length),))

    @property
    def length(self) -> int:
        """Number of tokens in the whole sequence."""
        return sum(segment.length for segment in self.segments)

    @property
    def grid_length(self) -> int:
        """Number of grid tokens, T*H*W."""
        return prod(self.grid)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame, H*W."""
        return self.grid[1] * self.grid[2]

    @property
    def has_grid(self) -> bool:
        """Whether the sequence contains image or video tokens."""
        return self.grid_length > 0

    def span(self, name: str) -> tuple[int, int] | None:
        """Half-open token range of a segment, or None when the layout has no such segment."""
        start = 0
        for segment in self.segments:
            if segment.name == name:
                return start, start + segment.length
            start += segment.length
        return None

    @property
    def grid_span(self) -> tuple[int, int]:
        """Half-open token range of the grid; ``(0, 0)`` without one."""
        return self.span(GRID) or (0, 0)

    @property
    def text_span(self) -> tuple[int, int] | None:
        """Half-open token range of the text, or None."""
        return self.span(TEXT)

    @property
    def grid_spans(self) -> tuple[tuple[int, int], ...]:
        """Half-open token ranges of the grid and of its copies, in sequence order; empty without a grid."""
        if not self.has_grid:
            return ()
        names = (GRID, *self.copies)
        return tuple(self.span(part.name) or (0, 0) for part in self.segments if part.name in names)

    @property
    def all_grids_length(self) -> int:
        """Number of tokens of the grid and of its copies."""
        return self.grid_length * (1 + len(self.copies))

    def without_copies(self) -> TokenLayout:
        """The same sequence whose copies are segments like any other."""
        return replace(self, copies=()) if self.copies else self

    def once(self) -> TokenLayout:
        """The sequence with the copies of the grid left out; it tells no times."""
        parts = tuple(part for part in self.segments if part.name not in self.copies)
        return TokenLayout(self.grid, parts)
