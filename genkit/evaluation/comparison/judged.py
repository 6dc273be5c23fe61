"""What the toy world's judge says of a clip or picture, where the prompt is one of the world's captions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.world.caption import actor_phrase, caption, motion_phrase
from genkit.world.judge import judge_clip, score
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import TEXTURES, Picture, PictureActor
from genkit.world.scene import Actor, Scene
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

#: Attributes whose mean is the accuracy of a clip or picture; those that are not asked for are left out.
JUDGED = ("background", "count", "colour", "nearest shape", "motion")
PICTURE_JUDGED = ("background", "count", "colour", "shape", "texture", "size")
_SIZES = ("medium", "small", "big")  # a phrase that names no size is of the first
_GROUND = re.compile(r"(?P<rest>.+) on an? (?P<ground>[a-z]+) background")


@cache
def _moving() -> dict[str, Actor]:
    """Every canonical phrase of one moving object."""
    found: dict[str, Actor] = {}
    for colour, shape, size, motion in itertools.product(COLOURS, SHAPES, _SIZES, MOTIONS):
        if (shape, motion) != ("circle", "spin"):
            actor = Actor(colour, shape, size, motion)
            found.setdefault(f"{actor_phrase(actor)} {motion_phrase(motion)}", actor)
    return found


@cache
def _still() -> dict[str, PictureActor]:
    """Every canonical phrase of one object of a picture."""
    found: dict[str, PictureActor] = {}
    for colour, shape, size, texture in itertools.product(COLOURS, SHAPES, _SIZES, TEXTURES):
        actor = PictureActor(colour, shape, size, texture=texture)
        found.setdefault(actor_phrase(actor, texture="" if texture == "plain" else texture), actor)
    return found


def _parts(prompt: str, known: Mapping[str, Any]) -> tuple[tuple[Any, ...], str] | None:
    """The one or two objects of a caption, and its background."""
    found = _GROUND.fullmatch(prompt)
    if found is None or found["ground"] not in BACKGROUNDS:
        return None
    rest = found["rest"]
    if rest in known:
        return (known[rest],), found["ground"]
    for cut in re.finditer(" and ", rest):  # "up and left" holds one of its own
        first, second = rest[: cut.start()], rest[cut.end() :]
        if first in known and second in known:
            return (known[first], known[second]), found["ground"]
    return None


def scene_of(prompt: str) -> Scene | None:
    """The scene whose canonical caption a prompt is; None for any other text."""
    text = " ".join(prompt.lower().split())
    found = _parts(text, _moving())
    try:
        scene = None if found is None else Scene(*found)
    except UsageError:  # a red thing on red, two of one colour
        return None
    return scene if scene is not None and caption(scene) == text else None


def picture_of(prompt: str) -> Picture | None:
    """The picture whose canonical caption a prompt is, without relations and places; None for any other text."""
    text = " ".join(prompt.lower().split())
    found = _parts(text, _still())
    try:
        picture = None if found is None else Picture(*found)
    except UsageError:
        return None
    return picture if picture is not None and picture_caption(picture) == text else None


def accuracy(prompt: str, frames: np.ndarray) -> float | None:
    """Share of what the prompt says that the judge sees in a clip or picture (T, H, W, 3); None where it cannot
    judge: the prompt is no caption of the toy world, or says of a picture what only a clip shows."""
    if len(frames) > 1:
        scene = scene_of(prompt)
        result = None if scene is None else score(scene, judge_clip(frames))
        names: tuple[str, ...] = JUDGED
    else:
        picture, names = picture_of(prompt), PICTURE_JUDGED
        result = None if picture is None else score_picture(picture, judge_picture(frames[0]))
    return None if result is None else float(np.mean([result[name] for name in names if name in result]))
