"""Pictures of the toy world to begin with, drawn when the demo starts: the shipped models know what they show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genkit.media.images import write_png
from genkit.media.video import write_mp4
from genkit.world.caption import caption
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, PictureActor, Placement
from genkit.world.render import render_clip
from genkit.world.scene import Actor, Scene, lay_out
from genkit.world.vocabulary import RADII

#: Pixels along a side; the shipped models of pictures were trained at it.
SIDE = 128
#: Of the clip.
FRAMES, FPS = 25, 8


@dataclass(frozen=True)
class Example:
    """A picture with a change of it.

    Args:
        path: the file.
        caption: what it shows.
        prompt: what it shall show.
        preset: the kind of change, as ``genkit edit`` names it.
    """

    path: Path
    caption: str
    prompt: str
    preset: str


def _scene(colour: str, shape: str, background: str, texture: str = "plain") -> tuple[Picture, np.ndarray]:
    picture = Picture((PictureActor(colour, shape, "big", texture=texture),), background)
    middle = np.array([SIDE / 2], dtype=np.float32)
    # As big as the world's: what is bigger than all that a model has seen comes out smaller and with a lumpy outline.
    radius = np.array([sum(RADII["big"]) / 2], dtype=np.float32)
    placed = Placement(middle, middle, radius)
    return picture, render_picture(picture, placed, SIDE, SIDE)


def draw(folder: Path) -> list[Example]:
    """Draw the examples into a folder."""
    changes = (
        (("red", "circle", "white"), ("blue", "circle", "white"), "colour"),
        (("green", "square", "black"), ("green", "triangle", "black"), "shape"),
        (("yellow", "cross", "purple"), ("yellow", "cross", "gray"), "background"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for source, target, preset in changes:
        picture, pixels = _scene(*source)
        path = folder / f"{'-'.join(source)}.png"
        write_png(path, pixels)
        found.append(Example(path, picture_caption(picture), picture_caption(_scene(*target)[0]), preset))
    return found


def draw_clip(folder: Path) -> Example:
    """Draw a clip with a change of its colour; the shipped model of videos knows what it shows."""
    scenes = [Scene((Actor(colour, "circle", motion="right"),), "white") for colour in ("red", "blue")]
    tracks = lay_out(scenes[0], FRAMES, SIDE, SIDE, np.random.default_rng(0))
    path = folder / "red-circle-moves-right.mp4"
    write_mp4(path, render_clip(scenes[0], tracks, SIDE, SIDE), FPS)
    before, after = map(caption, scenes)
    return Example(path, before, after, "colour")
