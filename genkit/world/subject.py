"""Clips whose caption keeps silent about the object, and a picture that shows it: the task of following a reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genkit.world.caption import motion_phrase
from genkit.world.picture_scene import Picture
from genkit.world.render import SHAPE_EXTENTS, render_clip
from genkit.world.scene import Scene, Tracks, lay_out, pick
from genkit.world.vocabulary import FIRST_BACKGROUNDS

# Half the diagonal of a square in units of its radius; the cross is shorter, the triangle's corner is in its extents.
_TURNED_REACH = 1.26


def subject_caption(scene: Scene | Picture, rng: np.random.Generator | None = None, picture: bool = False) -> str:
    """A caption that says how something moves and on which background, but not what it is.

    The grammar has no word for "object", so the subject is left out: "moves right on a blue background".

    Args:
        scene: what is shown; its first actor is the one that moves.
        rng: draws among paraphrases; without it the canonical caption is given.
        picture: leave the motion out, for single frames.
    """
    says = [] if picture else [motion_phrase(scene.actors[0].motion, rng)]
    plain = f"on a {scene.background} background"
    if rng is None:
        return " ".join([*says, plain])
    form = int(rng.integers(4))
    if form == 0:
        return " ".join([plain, *says])
    ending = f"on {scene.background}" if form == 1 else plain
    return " ".join([*says, ending])


def draw_subject_picture(scene: Scene, rng: np.random.Generator, height: int = 96, width: int = 96) -> np.ndarray:
    """A still picture of a scene's first actor alone, on another background and at a place of its own.

    Args:
        scene: whose first actor is shown; colour, shape and size are its own.
        rng: source of background and place.
        height, width: of the picture in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    actor = replace(scene.actors[0], motion="still")
    ground = pick(rng, [name for name in FIRST_BACKGROUNDS if name not in (actor.colour, scene.background)])
    alone = Scene((actor,), ground)
    return render_clip(alone, lay_out(alone, 1, height, width, rng), height, width)[0]


def actor_boxes(
    scene: Scene | Picture, tracks: Tracks, height: int, width: int
) -> list[tuple[float, float, float, float]]:
    """The first actor's box in every frame: (left, top, right, bottom) as shares of the canvas, cut to it."""
    actor = scene.actors[0]
    extents = SHAPE_EXTENTS[actor.shape]
    if actor.motion == "spin":
        extents = (max(_TURNED_REACH, *extents),) * 4
    left, right, top, bottom = (np.float64(side) * tracks.radius[0] for side in extents)
    x, y = tracks.x[0], tracks.y[0]
    edges = [(x - left) / width, (y - top) / height, (x + right) / width, (y + bottom) / height]
    return [tuple(row) for row in np.clip(np.stack(edges, -1), 0.0, 1.0).tolist()]
