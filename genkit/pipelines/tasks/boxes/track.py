"""The file of ``--boxes``: boxes at key frames, in shares of the canvas or in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from genkit.errors import UsageError, counted, explain
from genkit.reading import read_yaml
from genkit.reading.files import place
from genkit.schema import Rule, read

if TYPE_CHECKING:
    import torch

SHARES, PIXELS = "shares", "pixels"
#: Key frames of one track at most.
MOST_KEYS = 10_000


@dataclass(frozen=True)
class Key:
    """A box at one frame.

    Args:
        frame: from 0. box: left, top, right, bottom.
    """

    frame: Annotated[int, Rule(low=0, high=999_999)]
    box: list[float]


@dataclass(frozen=True)
class Track:
    """Boxes at key frames.

    Args:
        units: of the boxes: ``"shares"`` of the canvas from 0 to 1, or ``"pixels"``.
        boxes: one a key frame, by frame.
    """

    units: Literal["shares", "pixels"]
    boxes: Annotated[list[Key], Rule(most=MOST_KEYS)]

    def frames(self, frames: int, height: int, width: int, what: str = "--boxes") -> torch.Tensor:
        """Boxes (frames, 4) of a clip as shares of its canvas.

        Raises:
            UsageError: a box beyond the canvas, a key frame beyond the clip, or too few of them; names ``what``.
        """
        from genkit.attention.motion_boxes import interpolated

        sides = (width, height) if self.units == PIXELS else (1, 1)
        keys = {}
        for number, key in enumerate(self.boxes):
            name = f"{what}: box {number + 1}"
            if key.frame >= frames:
                raise UsageError(
                    explain(
                        f"{name}, frame", key.frame, f"0 to {frames - 1}, for the clip has {counted(frames, 'frame')}"
                    )
                )
            left, top, right, bottom = key.box
            if right > sides[0] or bottom > sides[1]:
                allowed = f"inside the canvas of {sides[0]}x{sides[1]} {self.units}"
                hint = "" if self.units == PIXELS else "for pixels write units: pixels"
                raise UsageError(explain(name, key.box, allowed, hint or None))
            keys[key.frame] = (left / sides[0], top / sides[1], right / sides[0], bottom / sides[1])
        return interpolated(keys, frames, what)


def read_track(path: str | Path, what: str = "--boxes") -> Track:
    """The track in a JSON or YAML file, checked as far as no clip is known.

    Raises:
        ArtifactError: missing, unreadable or out of all proportion. UsageError: another field or value, a box without
        an area, or two boxes of one frame; one line that names the place.
    """
    values = read_yaml(Path(path).expanduser(), what)
    name = f"{what} {place(path)}"
    if not isinstance(values, dict):
        raise UsageError(f"{name} must hold units and boxes; got {type(values).__name__}")
    track = read(Track, values, name)
    seen: dict[int, int] = {}
    for number, key in enumerate(track.boxes):
        here = f"{name}, box {number + 1}"
        if len(key.box) != 4:
            raise UsageError(explain(here, key.box, "four numbers: left, top, right, bottom"))
        left, top, right, bottom = key.box
        if min(left, top) < 0:
            raise UsageError(explain(here, key.box, "left and top of 0 or more: a box lies inside the canvas"))
        if right <= left or bottom <= top:
            raise UsageError(explain(here, key.box, "left < right and top < bottom: [left, top, right, bottom]"))
        if key.frame in seen:
            raise UsageError(f"{here}: frame {key.frame} already has box {seen[key.frame]}; leave one out")
        seen[key.frame] = number + 1
    if not track.boxes:
        raise UsageError(f"{name} has no boxes; give two or more, each with frame and box")
    return track
