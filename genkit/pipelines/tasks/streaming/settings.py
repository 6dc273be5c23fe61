"""What a stream takes beside the common settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, counted, explain
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.pipelines.text import as_pairs, as_texts

#: Settings of a stream by name, and how their values are read from text.
ARGUMENTS: dict[str, type] = {
    "context": str, "chunk": int, "sink": int, "recent": int, "trained": int, "carried": str, "context_noise": float,
    "keep": float, "renoise": bool, "state": str,
}  # fmt: skip


@dataclass(frozen=True)
class StreamSettings(Settings):
    """A video that is made chunk by chunk, and what it shows from which frame on."""

    stream: bool = option(
        False, "Make the video chunk by chunk, in constant memory, and write frames as they are made: .mp4 that plays "
        "while it grows, or -o - for standard output. Without --num-frames it goes on until it is stopped.",
        group="Stream", one_way=True, stored=WHEN_GIVEN,
    )  # fmt: skip
    stream_args: dict[str, Any] = option(
        dict, f"Settings of the stream: key=value,key=value; keys are {', '.join(ARGUMENTS)}.", group="Stream",
        parse=as_pairs, stored=WHEN_GIVEN, belongs="stream",
    )  # fmt: skip
    then: tuple[str, ...] = option(
        (), "A prompt that follows, in force from the first chunk that begins at its --at; so is a second --prompt. "
        "Repeatable.", group="Stream", parse=as_texts, stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    at: tuple[str, ...] = option(
        (), "Frame from which a prompt that follows is in force, one for each. Repeatable.", group="Stream",
        parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if not self.stream:
            for flag, given in (("--stream-args", self.stream_args), ("--then", self.then), ("--at", self.at)):
                if given:
                    raise UsageError(f"{flag} needs --stream, which makes a video chunk by chunk")
            return
        self.arguments()
        frames = self.frames()
        if len(frames) != len(self.then):
            raise UsageError(
                f"--at: got {counted(len(frames), 'frame')} for "
                f"{counted(len(self.then), 'prompt that follows', 'prompts that follow')} the first; give one for each"
            )
        if any(later <= before for before, later in zip((0, *frames), frames, strict=False)):
            raise UsageError(explain("--at", ", ".join(self.at), "frames in rising order, above 0"))

    def frames(self) -> tuple[int, ...]:
        """The frames of ``at`` as numbers."""
        for text in self.at:
            if not (text.isascii() and text.isdigit() and len(text) <= 12):
                raise UsageError(explain("--at", text, "a whole number of frames, such as 49"))
        return tuple(int(text) for text in self.at)

    def arguments(self) -> dict[str, Any]:
        """The stream's settings, typed."""
        return typed_arguments(self.stream_args)


def typed_arguments(given: Mapping[str, Any], allowed: Collection[str] = tuple(ARGUMENTS)) -> dict[str, Any]:
    """``--stream-args`` with their types; UsageError for names and values that mean nothing."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in allowed:
            raise UsageError(explain("--stream-args", name, allowed))
        found[name] = _typed(name, value)
    return found


def _typed(name: str, value: Any) -> Any:
    kind = ARGUMENTS[name]
    if isinstance(value, str) and kind is not str:
        if kind is bool:
            value = {"true": True, "false": False}.get(value.lower(), value)
        else:
            try:
                value = kind(value)
            except ValueError:
                pass
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not right:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise UsageError(explain(f"--stream-args {name}", value, words[kind]))
    return value
