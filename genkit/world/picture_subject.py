"""Pictures whose caption keeps silent about the object; see :mod:`genkit.world.subject` for clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genkit.world.picture_caption import cell_phrase
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, place
from genkit.world.scene import pick
from genkit.world.subject import subject_caption
from genkit.world.vocabulary import FIRST_BACKGROUNDS

# Stripes and dots change their colour on white, where they are black: the reference must show the same object.
_WHITE = "white"


def picture_subject_caption(picture: Picture, rng: np.random.Generator | None = None) -> str:
    """A caption that says the background and, where the picture has one, the place, but not what is there."""
    ground = subject_caption(picture, rng, picture=True)
    return ground if picture.cell is None else f"{cell_phrase(picture.cell)} {ground}"


def draw_picture_subject(picture: Picture, rng: np.random.Generator, height: int = 64, width: int = 64) -> np.ndarray:
    """A picture of the first actor alone, on another background and at a place of its own.

    A textured actor keeps the ink of its stripes or dots: both backgrounds are white, or neither is.

    Args:
        picture: whose first actor is shown; colour, shape, size and texture are its own.
        rng: source of background and place.
        height, width: in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    actor = picture.actors[0]
    grounds = [name for name in FIRST_BACKGROUNDS if name not in (actor.colour, picture.background)]
    if actor.texture != "plain":
        same = [name for name in grounds if (name == _WHITE) == (picture.background == _WHITE)]
        grounds = same or [picture.background]
    alone = replace(picture, actors=(actor,), background=pick(rng, grounds), relations=(), cell=None)
    placement = None
    while placement is None:  # a big object may be drawn too big for a small canvas
        placement = place(alone, height, width, rng)
    return render_picture(alone, placement, height, width)
