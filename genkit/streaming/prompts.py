"""What a stream shows, and from which frame on: one prompt, several with their frames, or one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from genkit.errors import UsageError, explain

Prompts = str | Mapping[int, str] | Iterable[str]


class Travel:
    """The prompt of every chunk.

    Args:
        prompts: a text for all chunks; a mapping from frame to text, in force from the first chunk that begins at that
            frame or later, with one for frame 0; or an iterable with one text per chunk, whose end ends the stream.
    """

    def __init__(self, prompts: Prompts):
        self._each: Iterator[str] | None = None
        self._at: dict[int, str] = {}
        if isinstance(prompts, str):
            self._at = {0: prompts}
        elif isinstance(prompts, Mapping):
            self._at = {_frame(frame): _text(text) for frame, text in sorted(prompts.items(), key=lambda one: one[0])}
            if 0 not in self._at:
                raise UsageError("the prompts of a stream begin at frame 0; give one for it")
        elif isinstance(prompts, Iterable):
            self._each = iter(prompts)
        else:
            raise UsageError(explain("prompt", prompts, "a text, a mapping from frame to text or an iterable of texts"))

    def at(self, frame: int) -> str | None:
        """The prompt of the chunk that begins at a frame; None when the stream has ended. Ask once per chunk."""
        if self._each is not None:
            text = next(self._each, None)
            return None if text is None else _text(text)
        return self._at[max(begin for begin in self._at if begin <= frame)]

    def replace(self, text: str) -> None:
        """One prompt from the next chunk on, whatever was planned."""
        self._at, self._each = {0: _text(text)}, None


def _frame(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(explain("frame of a prompt", value, "a whole number, 0 for the stream's first frame"))
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(explain("prompt", value, "a text"))
    return value
