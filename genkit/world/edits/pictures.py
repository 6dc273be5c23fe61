"""Drawing edits of pictures at random: one attribute of one object changes, or an object comes or goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.edits.case import ADD, BACKGROUND, COLOUR, PICTURE_KINDS, REMOVE, RIM, SHAPE, PictureEdit
from genkit.world.edits.regions import covers
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import TEXTURES, Picture, Placement, draw_picture, has_room, picture_split
from genkit.world.reading import dilate, erode
from genkit.world.render import SHAPE_EXTENTS
from genkit.world.scene import pick
from genkit.world.vocabulary import COLOURS, FIRST_BACKGROUNDS, SHAPES

_WHITE = "white"
# Pixels inside an outline that belong to its rim.
_INNER = 2


def draw_picture_edit(
    kind: str,
    rng: np.random.Generator,
    height: int = 128,
    width: int = 128,
    split: str = "any",
    actors: int | None = None,
) -> PictureEdit:
    """Draw an edit of a picture; what finds no room is drawn again.

    Args:
        kind: of :data:`genkit.world.edits.PICTURE_KINDS`.
        rng: source of randomness.
        height, width: of the canvas in pixels; two objects need 80.
        split: of the target, as in :func:`genkit.world.picture_scene.picture_split`; ``any`` for the world's own mix.
        actors: objects of the source: 1 or 2, of ``add`` 1, of ``remove`` 2. By default one in three of five pictures.
    """
    if kind not in PICTURE_KINDS:
        raise UsageError(explain("kind of edit", kind, PICTURE_KINDS))
    allowed = {ADD: (1,), REMOVE: (2,)}.get(kind, (1, 2))
    if actors is not None and actors not in allowed:
        raise UsageError(explain(f"actors of {kind!r}", actors, allowed))
    while True:
        count = 2 if kind in (ADD, REMOVE) else actors or (1 if rng.random() < 0.6 else 2)
        before, placement = draw_picture(rng, height, width, "any", count)
        draw = _come_or_go if kind in (ADD, REMOVE) else _change
        edit = draw(kind, before, placement, rng, height, width)
        if edit is not None and split in ("any", picture_split(edit.after)):
            return edit


def _change(
    kind: str, before: Picture, placement: Placement, rng: np.random.Generator, height: int, width: int
) -> PictureEdit | None:
    """One attribute of one object, or the background, becomes another; None where that is impossible."""
    if kind == BACKGROUND:
        return _change_ground(before, placement, rng, height, width)
    number = int(rng.integers(len(before.actors)))
    old = before.actors[number]
    taken = {actor.colour for actor in before.actors} | {before.background}
    options = {COLOUR: [name for name in COLOURS if name not in taken], SHAPE: SHAPES}.get(kind, TEXTURES)
    new = replace(old, **{kind: pick(rng, [name for name in options if name != getattr(old, kind)])})
    after = replace(before, actors=tuple(new if i == number else actor for i, actor in enumerate(before.actors)))
    if not has_room(after, placement, height, width):
        return None
    touched = [covers(scene, placement.tracks, number, height, width) > 0 for scene in (before, after)]
    stay = ~dilate(touched[0] | touched[1], RIM)[0]
    phrase = f"{new.colour} {new.shape}"
    return _edit(kind, (before, placement), (after, placement), stay, number, phrase)


def _change_ground(
    before: Picture, placement: Placement, rng: np.random.Generator, height: int, width: int
) -> PictureEdit | None:
    taken = {actor.colour for actor in before.actors} | {before.background}
    free = [name for name in FIRST_BACKGROUNDS if name not in taken]
    if any(actor.texture != "plain" for actor in before.actors):
        # The ink of stripes and dots is black on white: on another ground the texture would change, too.
        free = [name for name in free if (name == _WHITE) == (before.background == _WHITE)]
    if not free:
        return None
    after = replace(before, background=pick(rng, free))
    solid = [covers(before, placement.tracks, i, height, width) > 0.999 for i in range(len(before.actors))]
    stay = np.logical_or.reduce([erode(mask, _INNER) for mask in solid])[0]
    return _edit(BACKGROUND, (before, placement), (after, placement), stay, None, f"{after.background} background")


def _come_or_go(
    kind: str, both: Picture, placement: Placement, rng: np.random.Generator, height: int, width: int
) -> PictureEdit | None:
    """The second object is added to the first, or one of the two is taken away; None where no words say where."""
    if not both.relations:
        return None
    moved = 1 if kind == ADD else int(rng.integers(2))
    alone = Picture((both.actors[1 - moved],), both.background)
    rest = Placement(*(column[[1 - moved]] for column in (placement.x, placement.y, placement.radius)))
    phrase = f"{both.actors[moved].colour} {both.actors[moved].shape}"
    if kind == REMOVE:
        stay = ~dilate(covers(both, placement.tracks, moved, height, width) > 0, RIM)[0]
        return _edit(kind, (both, placement), (alone, rest), stay, None, phrase)
    # The new object may be anywhere on its side; what stays is the old one and the ground on its own side of it.
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    left, right, top, bottom = np.array(SHAPE_EXTENTS[both.actors[0].shape]) * placement.radius[0] + _INNER
    side = {
        "left": x < placement.x[0] + right,
        "right": x > placement.x[0] - left,
        "above": y < placement.y[0] + bottom,
        "below": y > placement.y[0] - top,
    }[both.relations[0][1]]
    stay = np.broadcast_to(side, (height, width)).copy()
    return _edit(kind, (alone, rest), (both, placement), stay, moved, phrase)


def _edit(
    kind: str,
    before: tuple[Picture, Placement],
    after: tuple[Picture, Placement],
    stay: np.ndarray,
    actor: int | None,
    phrase: str,
) -> PictureEdit:
    height, width = stay.shape
    source, target = (render_picture(*drawn, height, width) for drawn in (before, after))
    says, shall_say = (picture_caption(drawn[0]) for drawn in (before, after))
    return PictureEdit(kind, source, target, says, shall_say, stay, before[0], after[0], after[1], actor, phrase)
