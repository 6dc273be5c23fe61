"""One folder of a user's media, as settings name it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genkit.errors import UsageError, explain
from genkit.schema import RULE, Rule, read

#: How frames of a clip are chosen; names of musubi-tuner.
FRAME_EXTRACTIONS = ("head", "chunk", "slide", "uniform", "full")
#: What is done with clips that have no sound, for models with sound.
REFUSE, VIDEO_ONLY, SILENCE = "refuse", "video", "silence"
#: Ending of a file that describes data sets as musubi-tuner and sd-scripts do.
TOML = ".toml"


def _rule(**values: Any) -> dict[str, Any]:
    return {RULE: Rule(**values)}


@dataclass(frozen=True)
class DataSource:
    """A folder with its own settings; what is None is as the run's setting of the same name says.

    Args:
        path: a folder of media, or a ``.toml`` file that lists data sets.
        num_repeats: how often every sample comes in an epoch.
        weight: factor on that: 0.5 takes half of the samples in an epoch and the others in the next.
        caption: one caption for all samples.
        caption_extension: of the text file beside every sample, such as ``.txt``.
        caption_dropout: share of samples whose caption is emptied.
        trigger_word: put before every caption that does not have it.
        masks, control, first_frame, last_frame: see :class:`genkit.training.lora.settings.DataSettings`.
        resolution, num_frames, frame_extraction, frame_stride, frame_samples, aspect_buckets, upscale: likewise.
    """

    path: str
    num_repeats: int | None = field(default=None, metadata=_rule(low=1, high=1_000_000))
    weight: float = field(default=1.0, metadata=_rule(low=0.001, high=1000))
    caption: str | None = None
    caption_extension: str | None = None
    caption_dropout: float | None = field(default=None, metadata=_rule(low=0, high=1))
    trigger_word: str | None = None
    masks: str | None = None
    control: str | None = None
    first_frame: str | None = None
    last_frame: str | None = None
    resolution: tuple[str, ...] | None = None
    num_frames: tuple[int, ...] | None = None
    frame_extraction: str | None = field(default=None, metadata=_rule(choices=FRAME_EXTRACTIONS))
    frame_stride: int | None = field(default=None, metadata=_rule(low=1, high=100_000))
    frame_samples: int | None = field(default=None, metadata=_rule(low=1, high=100_000))
    aspect_buckets: bool | None = None
    upscale: bool | None = None
    missing_audio: str | None = field(default=None, metadata=_rule(choices=(VIDEO_ONLY, SILENCE, REFUSE)))

    @property
    def is_toml(self) -> bool:
        """Whether the path is a file that lists data sets itself."""
        return self.path.lower().endswith(TOML)

    def to_dict(self) -> dict[str, Any]:
        """What was given, as plain values."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        given = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


_DEFAULTS = {each.name: each.default for each in dataclasses.fields(DataSource)}


def as_sources(value: Any, what: str) -> tuple[DataSource, ...]:
    """A path, a mapping, or a list of both as a tuple of :class:`DataSource`.

    Raises:
        UsageError: an unknown key, a value of the wrong type, or a ``.toml`` file beside other sources.
    """
    if isinstance(value, str | Mapping | DataSource):
        value = (value,)
    if not isinstance(value, list | tuple):
        raise UsageError(explain(what, value, "a folder, a .toml file, or a list of folders"))
    numbered = len(value) > 1
    found = tuple(_source(each, f"{what}[{number}]" if numbered else what) for number, each in enumerate(value))
    if len(found) > 1 and any(source.is_toml for source in found):
        raise UsageError(f"{what}: a {TOML} file lists its data sets itself; give it alone, or folders without it")
    return found


def _source(value: Any, what: str) -> DataSource:
    if isinstance(value, DataSource):
        return value
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        raise UsageError(explain(what, value, "a folder, a .toml file, or settings with 'path: FOLDER'"))
    values = {str(key).replace("-", "_"): each for key, each in value.items()}
    for name, parse in (("resolution", as_sizes), ("num_frames", as_numbers)):
        if values.get(name) is not None:
            values[name] = parse(values[name], f"{what}, {name}")
    source = read(DataSource, values, what)
    if not source.path.strip():
        raise UsageError(explain(f"{what}, path", source.path, "a folder, or a .toml file"))
    return source


def as_numbers(value: Any, what: str) -> tuple[int, ...]:
    """``17``, ``"9,17"`` or a list of both as whole numbers from 1 on, each once."""
    items = value if isinstance(value, list | tuple) else (value,)
    parts = [part for item in items for part in (item.split(",") if isinstance(item, str) else (item,))]
    numbers = [_number(part, what) for part in parts]
    if min(numbers, default=1) < 1 or len(set(numbers)) < len(numbers):
        raise UsageError(explain(what, value, "whole numbers from 1 on, each once, such as 17 or 9,17"))
    return tuple(numbers)


def _number(value: Any, what: str) -> int:
    plain = value.strip() if isinstance(value, str) else value
    if isinstance(plain, str) and plain.isascii() and plain.isdigit() and len(plain) < 10:
        return int(plain)
    if isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) < 10**9:
        return plain
    raise UsageError(explain(what, value, "a whole number from 1 on"))


def as_sizes(value: Any, what: str) -> tuple[str, ...]:
    """``512``, ``"480x832"`` or a list of both as texts, each once; see :func:`size_of`."""
    items = value if isinstance(value, list | tuple) else (value,)
    parts = [part for item in items for part in (item.split(",") if isinstance(item, str) else (item,))]
    texts = tuple(str(part).strip().lower() for part in parts)
    for part, text in zip(parts, texts, strict=True):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise UsageError(explain(what, part, "a side such as 512, or HEIGHTxWIDTH such as 480x832"))
        size_of(text, what)
    if len(set(texts)) < len(texts):
        raise UsageError(explain(what, value, "sizes such as 512 or 480x832 (height x width), each once"))
    return texts


def size_of(text: str, what: str = "resolution") -> int | tuple[int, int]:
    """A size as settings write it.

    Args:
        text: ``"512"``: the area of a square of this side, in the aspect ratio of every file; ``"480x832"``: height and
            width of every sample.

    Returns:
        The side, or (height, width).
    """
    sides = text.split("x")
    if len(sides) <= 2 and all(side.isascii() and side.isdigit() and 0 < len(side) <= 5 for side in sides):
        numbers = [int(side) for side in sides]
        if min(numbers) >= 1:
            return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    raise UsageError(explain(what, text, "a side such as 512, or HEIGHTxWIDTH such as 480x832, in pixels"))
