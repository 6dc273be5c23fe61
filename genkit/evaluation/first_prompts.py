"""Forty prompts that people type first, and what the judge must see for them.

The README's own, plain paraphrases, every colour as background, two objects, relations; written before the models that
are measured on them were trained. What a prompt leaves unsaid is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genkit.world.judge import judge_clip, score
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture, PictureActor
from genkit.world.scene import Actor, Scene


@dataclass(frozen=True)
class FirstPrompt:
    """One prompt.

    Args:
        text: as typed.
        shows: what it asks for.
        said: attributes of the judge's score that the text names; count, colour and shape always are.
    """

    text: str
    shows: Scene | Picture
    said: frozenset[str]

    def right(self, seen: np.ndarray) -> bool:
        """Whether a clip (frames, height, width, 3) or a picture (height, width, 3), uint8, shows what was said."""
        if isinstance(self.shows, Picture):
            result = score_picture(self.shows, judge_picture(seen))
        else:
            result = score(self.shows, judge_clip(seen))
        return all(result[name] for name in self.said)


_ALWAYS = ("count", "colour", "shape")


def _clip(text: str, ground: str | None, *actors: tuple[str, str, str] | tuple[str, str, str, str]) -> FirstPrompt:
    """A prompt for a clip: background or None where it is unsaid, then (colour, shape, motion, size) per actor; an
    empty motion is unsaid."""
    cast = tuple(Actor(c, s, (more or ("medium",))[0], motion or "still") for c, s, motion, *more in actors)
    said = {*_ALWAYS, *(["background"] if ground else []), *(["motion"] if all(actor[2] for actor in actors) else [])}
    said |= {"size"} if all(len(actor) == 4 for actor in actors) else set()
    return FirstPrompt(text, Scene(cast, ground or "black"), frozenset(said))


def _picture(
    text: str, ground: str | None, *actors: tuple[str, ...], relation: str | None = None, cell: tuple | None = None
) -> FirstPrompt:
    """A prompt for a picture: (colour, shape, texture, size) per actor, the last two where they are said."""
    cast = tuple(
        PictureActor(c, s, (more[1:] or ["medium"])[0], texture=(more or ["plain"])[0]) for c, s, *more in actors
    )
    relations = ((0, relation, 1),) if relation else ()
    said = {*_ALWAYS, "texture", *(["background"] if ground else []), *(["place"] if relation or cell else [])}
    said |= {"size"} if all(len(actor) == 4 for actor in actors) else set()
    return FirstPrompt(text, Picture(cast, ground or "black", relations, cell), frozenset(said))


CLIP_PROMPTS: tuple[FirstPrompt, ...] = (
    _clip("a red circle moves right on a blue background", "blue", ("red", "circle", "right")),
    _clip("a blue triangle spins on a white background", "white", ("blue", "triangle", "spin")),
    _clip("a red circle moves right", None, ("red", "circle", "right")),
    _clip("a green square moves up on a black background", "black", ("green", "square", "up")),
    _clip("a blue circle on a yellow background", "yellow", ("blue", "circle", "")),
    _clip("a green circle on a red background", "red", ("green", "circle", "")),
    _clip("a green ball bounces", None, ("green", "circle", "bounce")),
    _clip("a small yellow square goes left on a purple background", "purple", ("yellow", "square", "left", "small")),
    _clip("a big purple circle gets smaller on an orange background", "orange", ("purple", "circle", "shrink")),
    _clip("red square moves down, white background", "white", ("red", "square", "down")),
    _clip("a pink triangle grows on a gray background", "gray", ("pink", "triangle", "grow")),
    _clip("a yellow ball jumps up and down on a green background", "green", ("yellow", "circle", "bounce")),
    _clip("a red cross rotates on a cyan background", "cyan", ("red", "cross", "spin")),
    _clip("a blue square slides to the left on a pink background", "pink", ("blue", "square", "left")),
    _clip("a big red ball stays still on a yellow background", "yellow", ("red", "circle", "still", "big")),
    _clip("a cyan square moves diagonally up and to the right", None, ("cyan", "square", "up_right")),
    _clip(
        "a red circle and a blue square on a white background",
        "white",
        ("red", "circle", ""),
        ("blue", "square", ""),
    ),
    _clip(
        "a red circle moves left and a green triangle moves right on a black background",
        "black",
        ("red", "circle", "left"),
        ("green", "triangle", "right"),
    ),
    _clip(
        "a yellow square stays still and a pink circle moves up on a blue background",
        "blue",
        ("yellow", "square", "still"),
        ("pink", "circle", "up"),
    ),
    _clip("a video of an orange ball on white", "white", ("orange", "circle", "")),
)
PICTURE_PROMPTS: tuple[FirstPrompt, ...] = (
    _picture(
        "a striped red square left of a green circle",
        None,
        ("red", "square", "striped"),
        ("green", "circle"),
        relation="left",
    ),
    _picture("a dotted pink square on a black background", "black", ("pink", "square", "dotted")),
    _picture("a red circle on a white background", "white", ("red", "circle")),
    _picture("a blue circle on a yellow background", "yellow", ("blue", "circle")),
    _picture("a green circle on a red background", "red", ("green", "circle")),
    _picture("a yellow square on a blue background", "blue", ("yellow", "square")),
    _picture("a big purple triangle on an orange background", "orange", ("purple", "triangle", "plain", "big")),
    _picture("a small red cross on a cyan background", "cyan", ("red", "cross", "plain", "small")),
    _picture("a striped blue square on a pink background", "pink", ("blue", "square", "striped")),
    _picture("an orange ball on a purple background", "purple", ("orange", "circle")),
    _picture("a spotted yellow disc on a green background", "green", ("yellow", "circle", "dotted")),
    _picture("a picture of a big cyan square on gray", "gray", ("cyan", "square", "plain", "big")),
    _picture("a red circle", None, ("red", "circle")),
    _picture("a green triangle in the middle", None, ("green", "triangle"), cell=("middle", "middle")),
    _picture(
        "a red circle and a blue square on a white background",
        "white",
        ("red", "circle"),
        ("blue", "square"),
    ),
    _picture(
        "a red circle above a blue square on a white background",
        "white",
        ("red", "circle"),
        ("blue", "square"),
        relation="above",
    ),
    _picture(
        "a blue square to the right of a yellow triangle on a red background",
        "red",
        ("blue", "square"),
        ("yellow", "triangle"),
        relation="right",
    ),
    _picture(
        "a dotted green circle is below a pink cross on a yellow background",
        "yellow",
        ("green", "circle", "dotted"),
        ("pink", "cross"),
        relation="below",
    ),
    _picture(
        "a small red square under a big blue circle",
        None,
        ("red", "square", "plain", "small"),
        ("blue", "circle", "plain", "big"),
        relation="below",
    ),
    _picture("on a cyan background a striped red triangle", "cyan", ("red", "triangle", "striped")),
)


def share_right(prompts: Sequence[FirstPrompt], seen: np.ndarray) -> tuple[float, list[bool]]:
    """Share of prompts whose sample shows what was said, and each one's answer."""
    found = [prompt.right(sample) for prompt, sample in zip(prompts, seen, strict=True)]
    return float(np.mean(found)), found
