"""Which frames a chunk of a stream can see, and at which positions: arithmetic on latent frames."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError, counted, explain


@dataclass(frozen=True)
class Window:
    """A sink of first frames that stays for ever, the latest frames before the chunk, and the chunk itself.

    All in latent frames. Positions in time are re-indexed for every chunk, so that they never leave those the model was
    trained on: the sink stands at 0, the chunk at its own place until that would leave them and then at the last
    ``chunk`` positions, and the frames before it end where it begins.

    Args:
        chunk: frames made at once.
        sink: first frames of the stream that are never dropped.
        recent: frames right before the chunk that are kept beside the sink.
        trained: positions that the model was trained on.

    Source: Hybrid Forcing, arXiv 2604.10103 (sink 3, recent 3, chunk 3, trained 21 for Wan 2.1 1.3B).
    """

    chunk: int
    sink: int
    recent: int
    trained: int

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("sink", 0), ("recent", 0), ("trained", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(explain(f"{name} of a stream's window", value, f"a whole number of at least {least}"))
        if self.length > self.trained:
            raise UsageError(
                f"a stream's window of {self.sink} + {self.recent} + {counted(self.chunk, 'latent frame')} "
                "(sink, recent, chunk) "
                f"is longer than the {self.trained} that the model was trained on; make one of them smaller"
            )
        if self.sink + self.recent < 1:
            raise UsageError("a stream whose window keeps no earlier frame (sink 0, recent 0) would forget everything")

    @property
    def length(self) -> int:
        """Frames that a chunk sees at most, itself included."""
        return self.sink + self.recent + self.chunk

    def kept(self, made: int) -> tuple[int, ...]:
        """The frames, counted from the stream's first one, that a chunk after ``made`` frames sees before itself."""
        first = max(min(self.sink, made), made - self.recent)
        return (*range(min(self.sink, made)), *range(first, made))

    def positions(self, made: int) -> tuple[int, ...]:
        """Positions in time of the frames of :meth:`kept`, then of the chunk's own."""
        kept, start = self.kept(made), min(made, self.trained - self.chunk)
        sink = min(self.sink, made)
        before = len(kept) - sink
        return (*range(sink), *range(start - before, start + self.chunk))

    def leaving(self, made: int) -> tuple[int, ...]:
        """The frames that, with the chunk after ``made`` frames done, are no longer among the latest ones: those that a
        state takes in, frames of the sink too."""
        return tuple(range(max(0, made - self.recent), max(0, made + self.chunk - self.recent)))

    def leaving_positions(self, made: int) -> tuple[int, ...]:
        """Positions of the frames of :meth:`leaving` beside the next chunk: right before its latest ones, at 0 at the
        least, where fewer frames were trained than these, the latest and the chunk are together."""
        count = len(self.leaving(made))
        start = min(made + self.chunk, self.trained - self.chunk) - min(self.recent, made + self.chunk) - count
        return tuple(range(max(0, start), max(0, start) + count))
