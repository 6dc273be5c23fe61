"""Pictures of the toy world to begin with, drawn when the demo starts: the shipped models know what they show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genkit.media.images import write_png
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, PictureActor, Placement

#: Pixels along a side; the shipped models of pictures were trained at it.
SIDE = 128


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
    placed = Placement(middle, middle, np.array([SIDE * 0.27], dtype=np.float32))
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


def draw_mask(folder: Path) -> Path:
    """A mask that covers the middle of an example."""
    mask = np.zeros((SIDE, SIDE, 3), np.uint8)
    margin = SIDE // 6
    mask[margin:-margin, margin:-margin] = 255
    path = folder / "mask-middle.png"
    write_png(path, mask)
    return path
