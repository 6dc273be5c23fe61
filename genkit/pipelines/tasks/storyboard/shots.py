"""The shots of a storyboard: from a file, or from texts such as "a red circle moves right@25"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.reading import read_yaml
from genkit.reading.files import place

#: Shots of one storyboard at most, and digits of a number of frames.
MOST_SHOTS, MOST_DIGITS = 100, 6
_TIMED = re.compile(rf"(.*\S)\s*@\s*(\d{{1,{MOST_DIGITS}}})", re.DOTALL)
#: What is meant as frames and is no number of them: ``@-5``, ``@33.5``, ``@nan``.
_NO_FRAMES = re.compile(r".*\S\s*@\s*([-+]?(?:\.?\d[\d.,_e]*|nan|inf))", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Shot:
    """One prompt, and how long it lasts.

    Args:
        prompt: what is seen.
        frames: how many of the clip; None = as the plan of the tiles comes to.
    """

    prompt: str
    frames: int | None = None

    @classmethod
    def of(cls, text: str) -> Shot:
        """A shot of a text with or without ``@FRAMES`` at its end.

        Raises:
            UsageError: another number there.
        """
        found = _TIMED.fullmatch(text)
        wrong = _NO_FRAMES.fullmatch(text) if found is None else None
        if wrong is not None:
            raise UsageError(explain("frames of a shot", f"@{wrong[1]}", "a whole number, such as @25"))
        return cls(text) if found is None else cls(found[1], int(found[2]))

    @property
    def text(self) -> str:
        """The inverse of :meth:`of`."""
        return self.prompt if self.frames is None else f"{self.prompt}@{self.frames}"


def read_storyboard(path: str | Path) -> tuple[Shot, ...]:
    """The shots of a YAML (or JSON) file: ``shots:``, a list of ``prompt`` and ``frames``.

    Raises:
        ArtifactError: missing, unreadable or out of all proportion. UsageError: anything else than shots.
    """
    name = place(path)
    values = read_yaml(path, "storyboard")
    if not isinstance(values, dict):
        raise UsageError(f"storyboard {name} must hold shots:, a list; got {type(values).__name__}")
    unknown = next((key for key in values if key != "shots"), None)
    if unknown is not None:
        raise UsageError(explain(f"field of storyboard {name}", unknown, ["shots"], "settings belong into --config"))
    listed = values.get("shots")
    if not isinstance(listed, list) or not listed:
        raise UsageError(explain(f"shots of storyboard {name}", listed, "a list of prompt and frames, one a shot"))
    return tuple(_shot(value, f"shot {number + 1} of storyboard {name}") for number, value in enumerate(listed))


def _shot(value: Any, what: str) -> Shot:
    if isinstance(value, str):
        return Shot.of(value)
    if not isinstance(value, Mapping):
        raise UsageError(explain(what, value, "prompt and frames, or a text alone"))
    known = [field.name for field in fields(Shot)]
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise UsageError(explain(f"field of {what}", unknown, known))
    prompt, frames = value.get("prompt"), value.get("frames")
    if not isinstance(prompt, str):
        raise UsageError(explain(f"prompt of {what}", prompt, "a text"))
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames < 10**6):
        raise UsageError(explain(f"frames of {what}", frames, "a whole number from 1 to 999999"))
    return Shot(prompt, frames)


def checked(shots: Sequence[Shot]) -> tuple[Shot, ...]:
    """The shots, if they make a storyboard.

    Raises:
        UsageError: one or none, too many, an empty prompt, or lengths for some of them alone.
    """
    if len(shots) == 1:
        raise UsageError(
            "a storyboard needs two shots or more, got one; give its prompt as the prompt, or repeat it for a longer "
            "clip"
        )
    if not 2 <= len(shots) <= MOST_SHOTS:
        raise UsageError(explain("number of shots", len(shots), f"2 to {MOST_SHOTS}"))
    for number, shot in enumerate(shots):
        if not shot.prompt.strip():
            raise UsageError(f"shot {number + 1} has no prompt; say what it shows")
        if "\0" in shot.prompt:
            raise UsageError(explain(f"prompt of shot {number + 1}", shot.prompt, "a text without the character NUL"))
    timed = [number for number, shot in enumerate(shots) if shot.frames is not None]
    if timed and len(timed) < len(shots):
        without = next(number for number in range(len(shots)) if number not in timed)
        raise UsageError(
            f"shot {without + 1} has no frames and shot {timed[0] + 1} has; say how long every shot is, or none"
        )
    return tuple(shots)


def split(frames: int, count: int) -> list[int]:
    """A number of frames as evenly as whole numbers go, the first ones longer."""
    return [frames // count + (number < frames % count) for number in range(count)]
