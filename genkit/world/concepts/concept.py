"""Concepts that the shipped models do not know: a new shape with a new word, or a manner of drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import caption
from genkit.world.concepts.outlines import OUTLINES, hollow
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, draw_picture
from genkit.world.render import render_clip, shape_distance
from genkit.world.scene import Scene, draw_scene, lay_out
from genkit.world.sound import draw_sounding_scene, find_events, render_sound

# The known shape whose place a new one takes: it reaches furthest, so that the new one stays inside, and has one word.
_HOST = "triangle"
SKETCH = "sketch"
SHAPE_CONCEPTS: tuple[str, ...] = tuple(OUTLINES)
CONCEPTS: tuple[str, ...] = (*SHAPE_CONCEPTS, SKETCH)
#: Motions that a new shape is shown with; a ring that spins is one that does not.
MOTIONS: tuple[str, ...] = (
    "still",
    "left",
    "right",
    "up",
    "down",
    "up_left",
    "up_right",
    "down_left",
    "down_right",
    "bounce",
)


@dataclass(frozen=True)
class Sample:
    """One captioned clip or picture.

    Args:
        scene: what is shown; in scenes of a new shape its place is held by a triangle.
        caption: names the concept where it is shown.
        pixels: uint8 (frames, height, width, 3); a picture has one frame.
        sound: float32 (2, samples) at :data:`genkit.world.sound.SAMPLE_RATE`; None without.
    """

    scene: Scene | Picture
    caption: str
    pixels: np.ndarray
    sound: np.ndarray | None = None


def draw_concept_clip(
    concept: str,
    rng: np.random.Generator,
    frames: int,
    height: int,
    width: int,
    sizes: Sequence[str] = ("medium", "big"),
    shown: bool = True,
    fps: float | None = None,
) -> Sample:
    """A clip of one moving object.

    Args:
        concept: one of :data:`SHAPE_CONCEPTS`.
        rng: source of randomness.
        frames, height, width: of the clip.
        sizes: size words to draw from: small outlines are lost in the shipped video autoencoders.
        shown: False for a clip of a known shape instead, which keeps the model from making everything the concept.
        fps: frames per second of a clip with sound, in which objects start, stop and bounce audibly; None for silence.
    """
    _check(concept, SHAPE_CONCEPTS)
    draw = draw_scene if fps is None else draw_sounding_scene
    while True:
        scene = draw(rng, "any" if shown else "train", actors=1)
        actor = scene.actors[0]
        if actor.motion in MOTIONS and actor.size in sizes and (not shown or actor.shape == _HOST):
            break
    tracks = lay_out(scene, frames, height, width, rng, holds=fps is not None)
    outlines = (OUTLINES[concept],) if shown else ()
    text = caption(scene)
    text = named(text, concept) if shown else text
    sound = None if fps is None else render_sound(find_events(scene, tracks, fps, width), frames / fps)
    return Sample(scene, text, render_clip(scene, tracks, height, width, outlines), sound)


def draw_concept_picture(
    concept: str, rng: np.random.Generator, height: int, width: int, shown: bool = True, actors: int | None = 1
) -> Sample:
    """A picture with a new shape, or as a sketch.

    Args:
        concept: one of :data:`CONCEPTS`.
        rng: source of randomness.
        height, width: of the picture.
        shown: False for a picture of known things instead, drawn as usual.
        actors: number of objects; None for the world's own mix. Of several the first is the new shape.
    """
    _check(concept, CONCEPTS)
    new = concept in OUTLINES and shown
    while True:
        picture, placement = draw_picture(rng, height, width, "any" if shown else "train", actors=actors)
        plain = all(actor.texture == "plain" for actor in picture.actors)
        hosts = [actor.shape == _HOST for actor in picture.actors]
        if shown and not plain or new and (not hosts[0] or any(hosts[1:])):
            continue
        break
    text = picture_caption(picture)
    if not shown:
        outlines: tuple = ()
    elif new:
        outlines, text = (OUTLINES[concept],), named(text, concept)
    else:
        outlines = tuple(hollow(_distance_of(actor.shape)) for actor in picture.actors)
        text = f"{SKETCH} of {text}"
    return Sample(picture, text, render_picture(picture, placement, height, width, outlines)[None])


def named(text: str, concept: str) -> str:
    """A caption with the new shape's word in the place of the known one."""
    return text.replace(_HOST, concept)


def _distance_of(shape: str):
    return lambda u, v, radius: shape_distance(shape, u, v, radius)


def _check(concept: str, allowed: Sequence[str]) -> None:
    if concept not in allowed:
        raise UsageError(explain("concept", concept, allowed))
