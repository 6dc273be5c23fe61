"""The files of what is given: found before a model is, read before its weights are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import UsageError, explain
from genkit.media import Video, probe_video, read_chosen, read_image
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.edit.settings import is_clip
from genkit.pipelines.tasks.inputs.settings import GIVEN
from genkit.reading import file_digest, regular
from genkit.reading.files import place
from genkit.reading.strength import STRENGTH, path_and_strength, strength_text

if TYPE_CHECKING:
    from fractions import Fraction

    from genkit.pipelines.settings import GenerateSettings

#: Pixels of a picture or frame at most.
MOST_PIXELS = 1 << 26
#: Frame numbers that a keyframe can have.
_FRAMES = 1_000_000
_NAMED = re.compile(r"(-?\w+)=(.+)", re.DOTALL)
#: Files of several pictures that are clips though their names do not say so.
_MOVING = (".gif", ".webp")


@dataclass(frozen=True)
class GivenFile:
    """One file.

    Args:
        setting: by which it was given.
        path: of it.
        name: before its ``=``: the number of a frame, or the kind of a control; empty without one.
        strength: after its ``@``; 1 without one.
    """

    setting: str
    path: Path
    name: str = ""
    strength: float = 1.0

    @cached_property
    def video(self) -> Video | None:
        """What a video file holds; None for pictures and animations."""
        return probe_video(self.path, flag(self.setting)) if is_clip(self.path) else None

    @cached_property
    def _picture(self) -> Any:
        most = None if self.path.suffix.lower() in _MOVING else 1
        return read_image(self.path, most, MOST_PIXELS, flag(self.setting))

    @property
    def moving(self) -> bool:
        """Whether it is a clip."""
        return self.video is not None or len(self._picture.frames) > 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        if self.video is not None:
            return self.video.height, self.video.width
        return self._picture.frames.shape[1:3]

    @property
    def count(self) -> int:
        """Frames."""
        return len(self._picture.frames) if self.video is None else len(self.video.starts)

    @property
    def fps(self) -> Fraction | None:
        """Of a clip that tells it."""
        return self._picture.fps if self.video is None else self.video.fps

    @property
    def told(self) -> tuple[str, ...]:
        """What was chosen in reading it, one line each."""
        return self._picture.told if self.video is None else self.video.told

    def still(self) -> np.ndarray:
        """A picture, uint8 (H, W, 3)."""
        return self._picture.frames[0]

    @property
    def _times(self) -> Video | None:
        """When the frames of a clip are shown; None for an animation that does not tell."""
        fps, frames = self.fps, self.count
        if self.video is not None or fps is None:
            return self.video
        starts = tuple(index / fps for index in range(frames))
        return Video(self.path, fps, starts, frames / fps, *self.size)

    def clip(self, fps: Fraction | None, most: int, skipped: int = 0) -> np.ndarray:
        """The frames of a clip, uint8 (T, H, W, 3), ``most`` of them at most, at a rate; None = its own. The first
        ``skipped`` of them are left out."""
        times = self._times
        numbers = list(range(min(self.count, most))) if times is None else times.chosen(fps or times.fps, most)
        numbers = numbers[skipped:]
        return self._picture.frames[numbers] if self.video is None else read_chosen(self.video, numbers)

    def frames_at(self, fps: Fraction) -> int:
        """How many frames it has at a rate."""
        times = self._times
        return self.count if times is None else len(times.chosen(fps, _FRAMES))

    @property
    def text(self) -> str:
        """As it means the same from any folder."""
        before = f"{self.name}=" if self.name else ""
        after = f"{STRENGTH}{strength_text(self.strength)}" if self.strength != 1 else ""
        return f"{before}{self.path.resolve()}{after}"


@dataclass(frozen=True)
class Files:
    """All that is given, in the order of :data:`genkit.pipelines.tasks.inputs.settings.GIVEN`."""

    all: tuple[GivenFile, ...]

    def of(self, setting: str) -> tuple[GivenFile, ...]:
        """Those of one setting."""
        return tuple(each for each in self.all if each.setting == setting)

    def fingerprints(self) -> dict[str, Any]:
        """Digests of the files, for the record."""
        return {"given_fingerprints": [file_digest(each.path)[:16] for each in self.all]}


def find(settings: GenerateSettings) -> Files:
    """The files that settings name.

    Raises:
        UsageError: a frame number or strength without meaning. ArtifactError: a file that does not exist.
    """
    found = []
    for setting in GIVEN:
        value = getattr(settings, setting)
        for text in value if isinstance(value, tuple) else () if value is None else (value,):
            found.append(_file(setting, text))
    return Files(tuple(found))


def full_places(files: Files) -> dict[str, Any]:
    """The settings as they mean the same from any folder."""
    several = ("image", "keyframe", "control", "image_prompt")
    named = {setting: tuple(each.text for each in files.of(setting)) for setting in GIVEN}
    return {name: texts if name in several else (texts[0] if texts else None) for name, texts in named.items()}


def _file(setting: str, text: str) -> GivenFile:
    what = f"--{setting.replace('_', '-')}"
    name, rest = "", text
    if setting in ("keyframe", "control"):
        named = _NAMED.fullmatch(text)
        if named is not None:
            name, rest = named.groups()
        if setting == "keyframe":
            _check_number(what, text, name)
    path, strength = path_and_strength(rest, what, low=0)
    if strength != 1 and setting == "mask":
        raise UsageError(f"{what} {place(text)}: a mask has no strength; leave out @{strength_text(strength)}")
    return GivenFile(setting, regular(path, what), name, strength)


def _check_number(what: str, text: str, name: str) -> None:
    try:
        number = int(name)
    except ValueError:
        number = _FRAMES
    if not -_FRAMES < number < _FRAMES:
        raise UsageError(explain(what, text, "N=FILE with the number of a frame, such as 0=first.png or -1=last.png"))
