"""Still pictures: one to three objects with a size and a texture, at a place or in a place relative to each other.

A :class:`Picture` is the discrete description (the ground truth of a caption), a :class:`Placement` the centres and
radii on a given canvas. :func:`draw_picture` draws both together, so that what is asked for has room. Colours, shapes,
sizes and backgrounds are those of the moving world (:mod:`genkit.world.scene`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.render import SHAPE_EXTENTS
from genkit.world.scene import MARGIN, SPLITS, Actor, Tracks, check_backgrounds, pick
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, FIRST_BACKGROUNDS, HELD_OUT_PAIRS, RADII, SHAPES, SIZES

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
#: Unit step from the second object to the first, in (right, down).
RELATIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITES: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
CELLS: tuple[tuple[str, str], ...] = tuple(
    (across, down) for across in ("left", "middle", "right") for down in ("top", "middle", "bottom")
)
#: Pixels left free between two objects, so that they are told apart.
GAP = 5.0
# A relation is drawn clearly: the other axis differs by at most this share of the named one.
_SLANT = 0.6
# Centres keep this distance from the borders of the thirds of the canvas, in pixels.
_CELL_MARGIN = 2.0


@dataclass(frozen=True)
class PictureActor(Actor):
    """One object of a picture: colour, shape, size and texture (``plain``, ``striped`` or ``dotted``)."""

    texture: str = "plain"

    def __post_init__(self):
        super().__post_init__()
        if self.texture not in TEXTURES:
            raise UsageError(explain("texture", self.texture, TEXTURES))
        if self.motion != "still":
            raise UsageError(explain("motion in a picture", self.motion, ("still",)))


@dataclass(frozen=True)
class Picture:
    """One to three actors of different colours, and where they are.

    Args:
        actors: in the order in which the caption names them.
        background: colour that no actor has.
        relations: (index, relation, index) such as ``(0, "left", 1)``: the first is left of the second.
        cell: (horizontal, vertical) third of the canvas for a single actor, None for anywhere.
    """

    actors: tuple[PictureActor, ...]
    background: str
    relations: tuple[tuple[int, str, int], ...] = ()
    cell: tuple[str, str] | None = None

    def __post_init__(self):
        if self.background not in BACKGROUNDS:
            raise UsageError(explain("background", self.background, BACKGROUNDS))
        if not 1 <= len(self.actors) <= 3:
            raise UsageError(f"a picture has one to three actors, got {len(self.actors)}")
        colours = [actor.colour for actor in self.actors] + [self.background]
        if len(set(colours)) != len(colours):
            raise UsageError(f"actors and background must differ in colour, got {', '.join(colours)}")
        for first, relation, second in self.relations:
            if relation not in RELATIONS:
                raise UsageError(explain("relation", relation, RELATIONS))
            if first == second or not all(0 <= index < len(self.actors) for index in (first, second)):
                raise UsageError(f"a relation names two of {len(self.actors)} actors by index, got {first}, {second}")
        if self.cell is not None and (len(self.actors) > 1 or self.cell not in CELLS):
            raise UsageError(f"a cell is a pair such as ('left', 'top') and needs a single actor, got {self.cell}")


@dataclass(frozen=True)
class Placement:
    """Where the actors of one picture are: float32 arrays (actors,) of centres and disc radii in pixels."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray

    def __post_init__(self):
        shapes = {getattr(self, field.name).shape for field in fields(self)}
        if len(shapes) != 1:
            raise UsageError(f"x, y and radius must have one entry per actor, got shapes {shapes}")

    @property
    def tracks(self) -> Tracks:
        """The same as a clip of one frame."""
        return Tracks(*(column[:, None] for column in (self.x, self.y, self.radius)), 0 * self.x[:, None])


def picture_split(picture: Picture) -> str:
    """The split a picture belongs to, by name as in :func:`genkit.world.scene.split_of`.

    ``held_out_pair``: an actor has a colour-shape pair that training never shows. ``held_out_tuple``: a (colour, shape,
    size, texture) tuple, or two objects in a relation, of the tenth that training never shows. Else ``train``.
    """
    if any((actor.colour, actor.shape) in HELD_OUT_PAIRS for actor in picture.actors):
        return "held_out_pair"
    keys = [f"{actor.colour}/{actor.shape}/{actor.size}/{actor.texture}" for actor in picture.actors]
    for first, relation, second in picture.relations:
        one, other = picture.actors[first], picture.actors[second]
        if relation in ("right", "below"):
            one, relation, other = other, OPPOSITES[relation], one
        keys.append(f"{one.colour}/{one.shape}/{relation}/{other.colour}/{other.shape}")
    held_out = any(hashlib.sha256(key.encode()).digest()[0] < 26 for key in keys)
    return "held_out_tuple" if held_out else "train"


def draw_picture(
    rng: np.random.Generator,
    height: int,
    width: int,
    split: str = "train",
    actors: int | None = None,
    shares: tuple[float, float, float] = (0.4, 0.4, 0.2),
    backgrounds: Sequence[str] = FIRST_BACKGROUNDS,
) -> tuple[Picture, Placement]:
    """Draw a picture and a placement at random; scenes that have no room on the canvas are drawn again.

    Args:
        rng: source of randomness.
        height, width: canvas in pixels, at least 64.
        split: one of ``train``, ``held_out_tuple``, ``held_out_pair``, ``any``.
        actors: 1, 2 or 3; by default drawn from ``shares``, as many as the canvas holds: one below 80 pixels of the
            shorter side, at most two below 120.
        shares: probabilities of one, two and three actors.
        backgrounds: names to draw the background from.
    """
    if split not in SPLITS:
        raise UsageError(explain("split", split, SPLITS))
    check_backgrounds(backgrounds)
    short = min(height, width)
    if short < 64:
        raise UsageError(f"a picture needs at least 64x64 pixels, got {height}x{width}")
    most = 1 if short < 80 else 2 if short < 120 else 3
    if actors is not None and not 1 <= actors <= most:
        raise UsageError(f"{height}x{width} pixels hold 1 to {most} actors, got {actors}")
    weights = np.array(shares[:most])
    while True:
        count = actors or 1 + int(rng.choice(most, p=weights / weights.sum()))
        picture = _draw(rng, count, backgrounds)
        if picture is None or split not in ("any", picture_split(picture)):
            continue
        placement = place(picture, height, width, rng)
        if placement is not None:
            return picture, placement


def _draw(rng: np.random.Generator, count: int, backgrounds: Sequence[str]) -> Picture | None:
    """A picture, or None where its objects have the colours of all backgrounds."""
    names = rng.permutation(list(COLOURS))[:count].tolist()
    grounds = [name for name in backgrounds if name not in names]
    if not grounds:
        return None
    background = pick(rng, grounds)
    # Three big objects have no room; one of two or three may stand out.
    sizes = [pick(rng, SIZES if count < 3 else SIZES[:2]) for _ in names]
    cast = tuple(
        PictureActor(colour, pick(rng, SHAPES), size, texture=TEXTURES[int(rng.choice(3, p=(0.5, 0.25, 0.25)))])
        for colour, size in zip(names, sizes, strict=True)
    )
    if count == 1:
        return Picture(cast, background, cell=pick(rng, CELLS) if rng.random() < 0.3 else None)
    relations = []
    if rng.random() < 0.85:
        relations.append((0, pick(rng, tuple(RELATIONS)), 1))
        if count == 3 and rng.random() < 0.7:
            relations.append((2, pick(rng, tuple(RELATIONS)), int(rng.integers(2))))
    return Picture(cast, background, tuple(relations))


def place(picture: Picture, height: int, width: int, rng: np.random.Generator, tries: int = 60) -> Placement | None:
    """Centres and radii that keep every object inside, apart from each other and where the picture says.

    Args:
        picture: what is shown.
        height, width: canvas in pixels.
        rng: source of randomness.
        tries: attempts before giving up.

    Returns:
        The placement, or None when none was found.
    """
    cast = picture.actors
    for _ in range(tries):
        radius = np.array([rng.uniform(*RADII[actor.size]) for actor in cast])
        boxes = np.stack([np.array(SHAPE_EXTENTS[actor.shape]) * r for actor, r in zip(cast, radius, strict=True)])
        x = _spread(rng, boxes[:, 0], boxes[:, 1], width)
        y = _spread(rng, boxes[:, 2], boxes[:, 3], height)
        if x is None or y is None:
            return None
        if _fits(picture, boxes, x, y, height, width):
            return Placement(x.astype(np.float32), y.astype(np.float32), radius.astype(np.float32))
    return None


def has_room(picture: Picture, placement: Placement, height: int, width: int) -> bool:
    """Whether a placement that was drawn for another picture also keeps this one's objects inside, apart and in place.

    Args:
        picture: with as many actors as the placement.
        placement: centres and radii.
        height, width: canvas in pixels.
    """
    boxes = np.array([SHAPE_EXTENTS[actor.shape] for actor in picture.actors]) * placement.radius[:, None]
    x, y = placement.x, placement.y
    inside = np.minimum(
        np.minimum(x - boxes[:, 0], width - x - boxes[:, 1]), np.minimum(y - boxes[:, 2], height - y - boxes[:, 3])
    )
    return bool(inside.min() >= MARGIN - 1e-3) and _fits(picture, boxes, x, y, height, width)


def _spread(rng: np.random.Generator, before: np.ndarray, after: np.ndarray, extent: int) -> np.ndarray | None:
    """Centres along one axis for objects that reach ``before`` and ``after`` their centres; None without room."""
    low, high = before + MARGIN, extent - after - MARGIN
    # A big triangle is a little wider than the smallest canvas: it is centred and its corners are cut.
    low, high = np.where(high < low, (low + high) / 2, low), np.where(high < low, (low + high) / 2, high)
    return None if np.any(before + after > extent + 4) else rng.uniform(low, np.maximum(high, low))


def _fits(picture: Picture, boxes: np.ndarray, x: np.ndarray, y: np.ndarray, height: int, width: int) -> bool:
    for i in range(len(x)):
        for j in range(i):
            across = max(x[i] - boxes[i, 0] - x[j] - boxes[j, 1], x[j] - boxes[j, 0] - x[i] - boxes[i, 1])
            down = max(y[i] - boxes[i, 2] - y[j] - boxes[j, 3], y[j] - boxes[j, 2] - y[i] - boxes[i, 3])
            if max(across, down) < GAP:
                return False
    for first, relation, second in picture.relations:
        dx, dy = x[first] - x[second], y[first] - y[second]
        along, aside = (dx, dy) if RELATIONS[relation][0] else (dy, dx)
        if along * sum(RELATIONS[relation]) <= 0 or abs(aside) > _SLANT * abs(along):
            return False
    if picture.cell is not None:
        for value, extent, name, words in (
            (x[0], width, picture.cell[0], ("left", "middle", "right")),
            (y[0], height, picture.cell[1], ("top", "middle", "bottom")),
        ):
            third = words.index(name)
            low, high = third * extent / 3, (third + 1) * extent / 3
            if not low + _CELL_MARGIN * (third > 0) <= value <= high - _CELL_MARGIN * (third < 2):
                return False
    return True
