"""The schema that an instruction is read as, its checks, and the settings that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from genkit.errors import UsageError, counted, explain
from genkit.pipelines.tasks.storyboard.shots import MOST_SHOTS

PICTURE, CLIP, SOUND, TRACK = "picture", "clip", "sound", "track"
BUDGETS = ("speed", "quality", "memory")
#: Seconds of a clip at most.
MOST_SECONDS = 100_000


@dataclass(frozen=True)
class Role:
    """What a file can be for.

    Args:
        settings: kind of file -> the setting that says it.
        means: in a few words, for a language model.
        several: whether more than one file has it.
    """

    settings: Mapping[str, str]
    means: str
    several: bool = False


ROLES = {
    "first_frame": Role({PICTURE: "image"}, "the video begins with this picture, it is animated"),
    "last_frame": Role({PICTURE: "last_image"}, "the video ends with this picture"),
    "keyframe": Role({PICTURE: "keyframe"}, "the video shows this picture at a frame of a given number", True),
    "subject": Role({PICTURE: "subject"}, "who or what is on this picture appears", True),
    "source": Role({PICTURE: "image", CLIP: "source_video"}, "is changed, or continued"),
    "control": Role({PICTURE: "control", CLIP: "control"}, "edges, depth or poses to follow", True),
    "mask": Role({PICTURE: "mask", CLIP: "mask"}, "white where something new is made"),
    "style": Role({PICTURE: "image_prompt"}, "what is made looks like this picture", True),
    "sound": Role({SOUND: "audio"}, "a video is made for this sound"),
    "silent_video": Role({CLIP: "video"}, "a sound is made for this video"),
    "boxes": Role({TRACK: "boxes"}, "where the object goes"),
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A file in its role.

    Args:
        path: of it, as it was given.
        kind: picture, clip, sound or track.
        role: one of :data:`ROLES`.
        frame: its number, of a keyframe; -1 is the last.
    """

    path: str
    kind: str
    role: str
    frame: int | None = None


@dataclass(frozen=True)
class Instruction:
    """What is wanted, as data. What is left out is open.

    Args:
        prompts: what is seen; several are shots of one clip.
        durations: seconds of every shot; empty, or as many as prompts.
        inputs: the files.
        frames: of the whole clip. seconds: likewise; one of both.
        fps: frames per second.
        width, height: in pixels, both or none.
        seed: of the noise.
        sound: whether the video is to have one.
        budget: speed, quality or memory.

    Raises:
        UsageError: a value that does not fit; the message names the field.
    """

    prompts: tuple[str, ...] = ()
    durations: tuple[float, ...] = ()
    inputs: tuple[Input, ...] = ()
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    sound: bool = False
    budget: str | None = None

    def __post_init__(self) -> None:
        for number, text in enumerate(self.prompts):
            if not isinstance(text, str) or not text.strip():
                raise UsageError(explain(f"prompts[{number}]", text, "a text that says what is seen"))
        if len(self.prompts) > MOST_SHOTS:
            raise UsageError(explain("number of prompts", len(self.prompts), f"{MOST_SHOTS} or fewer"))
        for name in ("frames", "width", "height"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= 1_000_000):
                raise UsageError(explain(name, value, "a whole number from 1 to 1000000"))
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**63):
            raise UsageError(explain("seed", self.seed, f"a whole number from 0 to {2**63 - 1}"))
        for name in ("seconds", "fps"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        for number, value in enumerate(self.durations):
            _check_number(f"durations[{number}]", value)
        if type(self.sound) is not bool:
            raise UsageError(explain("sound", self.sound, "true or false"))
        if self.budget not in (None, *BUDGETS):
            raise UsageError(explain("budget", self.budget, BUDGETS))
        self._check_lengths()
        self._check_roles()

    def _check_lengths(self) -> None:
        if (self.width is None) != (self.height is None):
            raise UsageError("width and height go together; give both or none")
        if self.frames is not None and self.seconds is not None:
            raise UsageError("frames and seconds both say how long the clip is; leave one out")
        if not self.durations:
            return
        if len(self.durations) != len(self.prompts):
            raise UsageError(
                f"durations: got {len(self.durations)} for {counted(len(self.prompts), 'prompt')}; give one "
                "for each, or none"
            )
        for name in ("frames", "seconds"):
            if getattr(self, name) is not None:
                raise UsageError(f"durations and {name} both say how long the clip is; leave one out")

    def _check_roles(self) -> None:
        for number, each in enumerate(self.inputs):
            where = f"inputs[{number}].role"
            if each.role not in ROLES:
                raise UsageError(explain(where, each.role, ROLES))
            if each.kind not in ROLES[each.role].settings:
                raise UsageError(f"{where}: {each.path} is a {each.kind}, and {each.role} is for another kind of file")
            if (each.role == "keyframe") != (each.frame is not None):
                raise UsageError(
                    f"inputs[{number}].frame: a keyframe has the number of its frame, and nothing else has"
                )
            if each.frame is not None and (type(each.frame) is not int or abs(each.frame) > 1_000_000):
                raise UsageError(explain(f"inputs[{number}].frame", each.frame, "a whole number; -1 is the last frame"))
        for role, facts in ROLES.items():
            files = [each.path for each in self.inputs if each.role == role]
            if len(files) > 1 and not facts.several:
                raise UsageError(f"inputs: role {role} is given to {' and '.join(files)}; one file can have it")
        taken: dict[str, Input] = {}
        for each in self.inputs:
            taken.setdefault(each.role, each)
        if "source" in taken and "first_frame" in taken:
            raise UsageError(
                f"inputs: {taken['source'].path} is the source that is changed and {taken['first_frame'].path} the "
                "first frame of something new; leave one out"
            )

    @classmethod
    def from_dict(cls, values: Any) -> Instruction:
        """The inverse of :meth:`to_dict`.

        Raises:
            UsageError: no mapping, an unknown field, or a value that does not fit; the message names it.
        """
        values = dict(_mapping(cls, values, "the instruction"))
        inputs = _listed(values.get("inputs", ()), "inputs")
        read = [Input(**_mapping(Input, each, f"inputs[{number}]")) for number, each in enumerate(inputs)]
        for number, each in enumerate(read):
            for name in ("path", "kind", "role"):
                if not isinstance(getattr(each, name), str):
                    raise UsageError(explain(f"inputs[{number}].{name}", getattr(each, name), "a text"))
        for name in ("prompts", "durations"):
            values[name] = _listed(values.get(name, ()), name)
        return cls(**(values | {"inputs": tuple(read)}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without what is open."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, (), False)}
        for name in ("prompts", "durations"):
            if name in values:
                values[name] = list(values[name])
        if self.inputs:
            values["inputs"] = [
                {name: value for name, value in asdict(each).items() if value is not None} for each in self.inputs
            ]
        return values

    def files(self) -> dict[str, Any]:
        """The settings that name files."""
        found: dict[str, list[str]] = {}
        for each in self.inputs:
            text = each.path if each.frame is None else f"{each.frame}={each.path}"
            found.setdefault(ROLES[each.role].settings[each.kind], []).append(text)
        single = ("last_image", "source_video", "mask", "audio", "video", "boxes")
        return {name: texts[0] if name in single else tuple(texts) for name, texts in found.items()}


def _check_number(name: str, value: Any) -> None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not 0 < value <= MOST_SECONDS:
        raise UsageError(explain(name, value, f"a number above 0 and up to {MOST_SECONDS}"))


def _mapping(cls: type, values: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(explain(what, values, "names and values"))
    known = {field.name: field for field in fields(cls)}
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise UsageError(explain(f"field of {what}", unknown, known))
    needed = [name for name in ("path", "kind", "role") if name in known and name not in values]
    if needed:
        raise UsageError(f"{what}: {needed[0]} is missing")
    return values


def _listed(values: Any, what: str) -> tuple:
    if not isinstance(values, (list, tuple)):
        raise UsageError(explain(what, values, "a list"))
    return tuple(values)
