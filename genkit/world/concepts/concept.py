"""Concepts that the shipped models do not know: a new shape or motion with a new word, or a manner of drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import caption
from genkit.world.concepts.outlines import OUTLINES, hollow
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, Placement, draw_picture
from genkit.world.render import Distance, coverage, render_clip, shape_distance
from genkit.world.scene import MARGIN, Actor, Scene, Tracks, draw_scene, lay_out
from genkit.world.sound import draw_sounding_scene, find_events, render_sound
from genkit.world.vocabulary import BACKGROUNDS

# The known shape whose place a new one takes: it reaches furthest, so that the new one stays inside, and has one word.
_HOST = "triangle"
# The known motion's verb whose place a new one's takes.
_HOST_VERB = "moves"
#: Manners of drawing: outlines with nothing within, and dark shapes on white whatever their colour.
SKETCH, SILHOUETTE = "sketch", "silhouette"
STYLES: tuple[str, ...] = (SKETCH, SILHOUETTE)
ZIGZAG = "zigzag"
SHAPE_CONCEPTS: tuple[str, ...] = tuple(OUTLINES)
#: What a clip can show, and what a picture can.
CLIP_CONCEPTS: tuple[str, ...] = (*SHAPE_CONCEPTS, ZIGZAG)
PICTURE_CONCEPTS: tuple[str, ...] = (*SHAPE_CONCEPTS, *STYLES)
CONCEPTS: tuple[str, ...] = (*SHAPE_CONCEPTS, ZIGZAG, *STYLES)
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
# A zigzag goes up and down by this many pixels, once in this many frames, from its lowest point on: one motion, which
# thirty clips can teach, not a family of motions. Its middle may be off the canvas's by so many pixels.
_SWING, _PERIOD, _OFF = (36.0, 42.0), 16.0, 8.0


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
        concept: one of :data:`CLIP_CONCEPTS`.
        rng: source of randomness.
        frames, height, width: of the clip.
        sizes: size words to draw from: small outlines are lost in the shipped video autoencoders.
        shown: False for a clip of a known shape and motion instead, which keeps the model from making everything the
            concept.
        fps: frames per second of a clip with sound, in which objects start, stop and bounce audibly; None for silence.
    """
    _check(concept, CLIP_CONCEPTS)
    draw = draw_scene if fps is None else draw_sounding_scene
    while True:
        scene = draw(rng, "any" if shown and concept != ZIGZAG else "train", actors=1)
        if _suits(concept, scene.actors[0], sizes, shown):
            break
    tracks = lay_out(scene, frames, height, width, rng, holds=fps is not None)
    outlines: tuple[Distance, ...] = ()
    text = caption(scene)
    if shown and concept == ZIGZAG:
        tracks = zigzag(tracks, height, rng)
        text = text.replace(_HOST_VERB, f"{ZIGZAG}s")
    elif shown:
        outlines, text = (OUTLINES[concept],), named(text, concept)
    sound = None if fps is None else render_sound(find_events(scene, tracks, fps, width), frames / fps)
    return Sample(scene, text, render_clip(scene, tracks, height, width, outlines), sound)


def zigzag(tracks: Tracks, height: int, rng: np.random.Generator) -> Tracks:
    """Tracks of one actor that goes up and down in straight lines besides.

    Args:
        tracks: of an actor that moves to the left or right.
        height: of the canvas in pixels.
        rng: draws how far it goes up and down, and around which height.
    """
    swing = rng.uniform(*_SWING)
    turn = np.mod(np.arange(tracks.y.shape[1]) / _PERIOD, 1.0)
    room = max(height / 2 - swing / 2 - MARGIN - 1.3 * float(tracks.radius.max()), 0.0)
    middle = height / 2 + rng.uniform(-1, 1) * min(_OFF, room)
    y = middle + swing * (2 * np.abs(turn - 0.5) - 0.5)
    return replace(tracks, y=y[None].astype(np.float32))


def _suits(concept: str, actor: Actor, sizes: Sequence[str], shown: bool) -> bool:
    """Whether a drawn actor can hold the concept's place."""
    if not shown or concept == ZIGZAG:
        moves = actor.motion in ("left", "right") if shown else True
        return moves and actor.size in sizes
    return actor.motion in MOTIONS and actor.size in sizes and actor.shape == _HOST


def draw_concept_picture(
    concept: str, rng: np.random.Generator, height: int, width: int, shown: bool = True, actors: int | None = 1
) -> Sample:
    """A picture with a new shape, or in a new manner.

    Args:
        concept: one of :data:`PICTURE_CONCEPTS`.
        rng: source of randomness.
        height, width: of the picture.
        shown: False for a picture of known things instead, drawn as usual.
        actors: number of objects; None for the world's own mix. Of several the first is the new shape.
    """
    _check(concept, PICTURE_CONCEPTS)
    new = concept in OUTLINES and shown
    while True:
        picture, placement = draw_picture(rng, height, width, "any" if shown else "train", actors=actors)
        plain = all(actor.texture == "plain" for actor in picture.actors)
        hosts = [actor.shape == _HOST for actor in picture.actors]
        if shown and not plain or new and (not hosts[0] or any(hosts[1:])):
            continue
        break
    text, outlines = picture_caption(picture), ()
    if new:
        text, outlines = named(text, concept), (OUTLINES[concept],)
    elif shown:
        text = f"{concept} of {text}"
    if shown and concept == SKETCH:
        outlines = tuple(hollow(partial(shape_distance, actor.shape)) for actor in picture.actors)
    if shown and concept == SILHOUETTE:
        return Sample(picture, text, _silhouette(picture, placement, height, width)[None])
    return Sample(picture, text, render_picture(picture, placement, height, width, outlines)[None])


def _silhouette(picture: Picture, placement: Placement, height: int, width: int) -> np.ndarray:
    """All objects in black on white."""
    share = np.zeros((height, width, 1), np.float32)
    for number, actor in enumerate(picture.actors):
        alpha, rows, columns = coverage(actor.shape, placement.tracks, number, height, width)
        window = share[rows[0, 0] : rows[0, -1] + 1, columns[0, 0] : columns[0, -1] + 1, 0]
        np.maximum(window, alpha[0], out=window)
    light, dark = (np.array(BACKGROUNDS[name], np.float32) for name in ("white", "black"))
    return np.round(light + share * (dark - light)).astype(np.uint8)


def named(text: str, concept: str) -> str:
    """A caption with the new shape's word in the place of the known one."""
    return text.replace(_HOST, concept)


def _check(concept: str, allowed: Sequence[str]) -> None:
    if concept not in allowed:
        raise UsageError(explain("concept", concept, allowed))
