"""The judge of still pictures: count, colour, shape, texture, size and place from pixels by arithmetic.

Objects are the connected parts that differ from the background. Inside each, every pixel lies between the object's
colour and the ink of its texture: the colour is the palette entry for which that holds best, the share and direction of
the ink are the texture. Outline, size and place are read as in :mod:`genkit.world.judge`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError
from genkit.world.judge import match_actors
from genkit.world.picture_render import ink_of
from genkit.world.picture_scene import Picture
from genkit.world.reading import (
    MIN_AREA,
    SOFT_LIMIT,
    UNCLEAR,
    connected,
    erode,
    read_background,
    read_moments,
    read_place,
    read_shape,
    read_size,
)
from genkit.world.vocabulary import COLOURS, PALETTE

# Distances in RGB units of 0..255.
_OFF_GROUND = 36.0
_COLOUR_REACH = 30.0
_RIVAL = 1.35
# An object's own colour must cover this share of it.
_OWN_SHARE = 0.3
_PLAIN_INK, _TEXTURE_INK = 0.04, (0.12, 0.62)
_STRIPED, _DOTTED = 0.72, 0.55
# Of two centres, the larger of the two distances must be this many times the other to name a direction.
_DIRECTION = 1.2


@dataclass(frozen=True)
class SeenPart:
    """One object of a picture; words may be ``"unclear"``. ``x``, ``y`` in pixels, ``area`` in square pixels."""

    colour: str
    shape: str
    size: str
    texture: str
    place: tuple[str, str]
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class PictureVerdict:
    """What a picture shows: the objects from largest to smallest, the background, and why something is unclear."""

    actors: tuple[SeenPart, ...]
    background: str
    notes: tuple[str, ...] = ()


def judge_picture(picture: np.ndarray) -> PictureVerdict:
    """Read a picture, uint8 (height, width, 3). Never raises on strange pictures: they are ``"unclear"``."""
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise UsageError(
            f"the judge of pictures reads uint8 arrays (height, width, 3), got {picture.dtype} {picture.shape}"
        )
    pixels = picture.astype(np.float32)
    notes: list[str] = []
    background, ground = read_background(pixels[None], notes)
    if background == UNCLEAR:
        return PictureVerdict((), UNCLEAR, tuple(notes))
    off = np.abs(pixels - ground).max(-1) > _OFF_GROUND
    ink = ink_of(background)
    parts = [_describe(pixels, ground, ink, mask, notes) for mask in connected(off, 0.3 * MIN_AREA)]
    parts = [part for part in parts if part is not None]
    return PictureVerdict(tuple(sorted(parts, key=lambda part: -part.area)), background, tuple(notes))


def _describe(pixels, ground, ink, mask, notes) -> SeenPart | None:
    core = erode(mask[None], 2)[0]
    if core.sum() < 24:
        notes.append(f"a speck of {int(mask.sum())} pixels")
        return None
    colour, share = _colour(pixels[core], ink, notes)
    height, width = mask.shape
    own = np.array(COLOURS[colour], dtype=np.float32) if colour != UNCLEAR else np.median(pixels[core], axis=0)
    near = ~erode(~mask[None], 1)[0]
    # Of the two mixtures a rim pixel can be, the one with the larger share of the object.
    alpha = np.maximum(_cover(pixels, ground, own), _cover(pixels, ground, ink)) * near
    alpha[core] = 1.0
    alpha[alpha < 0.15] = 0.0
    area, x, y, harmonics, solidity = read_moments(alpha)
    if area < MIN_AREA:
        notes.append(f"the {colour} object has only {area:.0f} pixels")
    name = f"{colour} object"
    shape = read_shape(harmonics[None], np.array([solidity]), colour, notes) if area >= MIN_AREA else UNCLEAR
    if float((4 * alpha * (1 - alpha)).sum() / max(alpha.sum(), 1.0)) > SOFT_LIMIT:
        notes.append(f"the {name} has no sharp outline")
        shape = UNCLEAR
    texture = UNCLEAR if colour == UNCLEAR else _texture(core, share, name, notes)
    place = read_place(np.array([x]), np.array([y]), width, height)
    return SeenPart(colour, shape, read_size(np.array([area])), texture, place, float(x), float(y), float(area))


def _cover(pixels: np.ndarray, ground: np.ndarray, full: np.ndarray) -> np.ndarray:
    axis = full - ground
    return np.clip(((pixels - ground) @ axis) / max(float(axis @ axis), 1.0), 0.0, 1.0)


def _colour(points: np.ndarray, ink: np.ndarray, notes: list[str]) -> tuple[str, np.ndarray]:
    """Palette colour of pixels (n, 3) that are mixtures of it and ink, and their share of ink (n,)."""
    axes = ink - PALETTE
    shares = ((points[:, None] - PALETTE) * axes).sum(-1) / (axes * axes).sum(-1)
    shares = np.clip(shares, 0.0, 1.0)
    off = np.linalg.norm(points[:, None] - PALETTE - shares[..., None] * axes, axis=-1).mean(0)
    off = np.where((shares < 0.25).mean(0) >= _OWN_SHARE, off, np.inf)
    order = np.argsort(off)
    best, second = int(order[0]), int(order[1])
    if not off[best] < _COLOUR_REACH or off[second] < _RIVAL * off[best]:
        notes.append(f"an object's colour is {off[best]:.0f} from the nearest palette entry")
        return UNCLEAR, shares[:, best]
    return list(COLOURS)[best], shares[:, best]


def _texture(core: np.ndarray, share: np.ndarray, name: str, notes: list[str]) -> str:
    """Texture from the share of ink (n,) on the core pixels: how much, and whether it varies along one direction."""
    amount = float((share > 0.5).mean())
    if amount < _PLAIN_INK and float(share.mean()) < 0.12:
        return "plain"
    if not _TEXTURE_INK[0] <= amount <= _TEXTURE_INK[1]:
        notes.append(f"the {name} has {amount:.0%} of ink, too little or too much for a texture")
        return UNCLEAR
    if float((4 * share * (1 - share)).mean()) > 0.5:
        notes.append(f"the texture of the {name} is blurred")
        return UNCLEAR
    field = np.zeros(core.shape, dtype=np.float32)
    field[core] = share
    inner = erode(core[None], 1)[0][1:-1, 1:-1]
    across = (field[1:-1, 2:] - field[1:-1, :-2])[inner]
    down = (field[2:, 1:-1] - field[:-2, 1:-1])[inner]
    xx, yy, xy = (float((a * b).sum()) for a, b in ((across, across), (down, down), (across, down)))
    coherence = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-6)
    if coherence >= _STRIPED:
        return "striped"
    if coherence <= _DOTTED:
        return "dotted"
    notes.append(f"the texture of the {name} is between stripes and dots ({coherence:.2f})")
    return UNCLEAR


def seen_relation(first: SeenPart, second: SeenPart) -> str:
    """Where the first object is from the second: ``left``, ``right``, ``above``, ``below``, or ``"unclear"``."""
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < _DIRECTION * min(abs(dx), abs(dy)):
        return UNCLEAR
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def score_picture(picture: Picture, verdict: PictureVerdict) -> dict[str, bool]:
    """Compare a verdict with the picture that was asked for.

    Actors are matched by colour first, then by order. Returns one boolean per attribute: ``background``, ``count``,
    ``colour``, ``shape``, ``texture``, ``size``, ``place`` (only where the picture asks for one) and ``all``;
    attributes of actors are right only when they are right for every actor.
    """
    result = {
        "background": verdict.background == picture.background,
        "count": len(verdict.actors) == len(picture.actors),
    }
    pairs = match_actors(picture, verdict)
    for name in ("colour", "shape", "texture", "size"):
        result[name] = all(seen is not None and getattr(seen, name) == getattr(asked, name) for asked, seen in pairs)
    places = []
    for first, relation, second in picture.relations:
        one, other = pairs[first][1], pairs[second][1]
        places.append(one is not None and other is not None and seen_relation(one, other) == relation)
    if picture.cell is not None:
        places.append(pairs[0][1] is not None and pairs[0][1].place == picture.cell)
    if places:
        result["place"] = all(places)
    result["all"] = all(result.values())
    return result
