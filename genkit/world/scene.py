"""What a clip shows: actors with a colour, shape, size and motion on a background, and how scenes are drawn at random.

A :class:`Scene` is the discrete description (the ground truth of a caption). :func:`lay_out` turns it into
:class:`Tracks`, the continuous path of every actor for a given canvas and length. Everything follows from a seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError
from genkit.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    HELD_OUT_PAIRS,
    MOTIONS,
    RADII,
    SHAPES,
    SIZES,
)

SPLITS = ("train", "held_out_tuple", "held_out_pair", "any")
MARGIN = 3.0
BOUNCE_PERIOD = (9.0, 12.0)
SPIN_DEGREES = (8.0, 11.0)


@dataclass(frozen=True)
class Actor:
    """One object: colour, shape, size and motion words of :mod:`genkit.world.vocabulary`."""

    colour: str
    shape: str
    size: str = "medium"
    motion: str = "still"

    def __post_init__(self):
        for what, given, allowed in (
            ("colour", self.colour, COLOURS),
            ("shape", self.shape, SHAPES),
            ("size", self.size, SIZES),
            ("motion", self.motion, MOTIONS),
        ):
            if given not in allowed:
                raise UsageError(f"{what}: got {given!r}, allowed: {', '.join(allowed)}")
        if self.shape == "circle" and self.motion == "spin":
            raise UsageError("a spinning circle cannot be told from a still one: choose another shape or motion")


@dataclass(frozen=True)
class Scene:
    """One or two actors of different colours on a background that is none of them."""

    actors: tuple[Actor, ...]
    background: str

    def __post_init__(self):
        if self.background not in BACKGROUNDS:
            raise UsageError(f"background: got {self.background!r}, allowed: {', '.join(BACKGROUNDS)}")
        if not 1 <= len(self.actors) <= 2:
            raise UsageError(f"a scene has one or two actors, got {len(self.actors)}")
        colours = [actor.colour for actor in self.actors] + [self.background]
        if len(set(colours)) != len(colours):
            raise UsageError(f"actors and background must differ in colour, got {', '.join(colours)}")


@dataclass(frozen=True)
class Tracks:
    """Paths of the actors of one clip, float32 arrays of shape (actors, frames).

    ``x`` and ``y`` are centres in pixels (pixel centres at half-integers), ``radius`` the radius of a disc of equal
    area in pixels, ``angle`` in radians clockwise.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def _bucket(actor: Actor, background: str) -> int:
    key = f"{actor.colour}/{actor.shape}/{actor.motion}/{background}"
    return hashlib.sha256(key.encode()).digest()[0]


def split_of(scene: Scene) -> str:
    """The split a scene belongs to.

    ``held_out_pair``: an actor has a colour-shape pair that training never shows. ``held_out_tuple``: every pair is
    known, but a (colour, shape, motion, background) tuple is one of the tenth that training never shows. Else ``train``.
    """
    if any((actor.colour, actor.shape) in HELD_OUT_PAIRS for actor in scene.actors):
        return "held_out_pair"
    if any(_bucket(actor, scene.background) < 26 for actor in scene.actors):
        return "held_out_tuple"
    return "train"


def draw_scene(
    rng: np.random.Generator,
    split: str = "train",
    actors: int | None = None,
    moving: bool = True,
    two_share: float = 0.25,
) -> Scene:
    """Draw a scene at random from a split.

    Args:
        rng: source of randomness.
        split: one of ``train``, ``held_out_tuple``, ``held_out_pair``, ``any``.
        actors: 1 or 2; by default two with probability ``two_share``.
        moving: False for pictures, whose actors are all ``still``.
        two_share: probability of a second actor.
    """
    if split not in SPLITS:
        raise UsageError(f"split: got {split!r}, allowed: {', '.join(SPLITS)}")
    while True:
        count = actors or (2 if rng.random() < two_share else 1)
        colours = rng.permutation(list(COLOURS))[:count]
        background = str(rng.choice([name for name in BACKGROUNDS if name not in colours]))
        cast = []
        for colour in colours:
            shape = str(rng.choice(SHAPES))
            motion = _draw_motion(rng, shape) if moving else "still"
            size = str(rng.choice(SIZES if count == 1 else SIZES[:2]))
            if motion in ("grow", "shrink"):
                size = "medium"
            cast.append(Actor(str(colour), shape, size, motion))
        scene = Scene(tuple(cast), background)
        if split in ("any", split_of(scene)):
            return scene


def _draw_motion(rng: np.random.Generator, shape: str) -> str:
    groups = (("still",), ("left", "right", "up", "down"), tuple(DIRECTIONS)[4:], ("bounce",), ("grow",), ("shrink",), ("spin",))
    weights = np.array([1.0, 4.0, 2.0, 1.0, 1.0, 1.0, 0.0 if shape == "circle" else 1.0])
    group = groups[int(rng.choice(len(groups), p=weights / weights.sum()))]
    return str(rng.choice(group))


def lay_out(scene: Scene, frames: int, height: int, width: int, rng: np.random.Generator, tries: int = 40) -> Tracks:
    """Choose start points, speeds and radii so that every actor stays inside and two actors do not meet.

    Args:
        scene: what to show.
        frames: number of frames, at least 1.
        height, width: canvas in pixels, at least 64.
        rng: source of randomness.
        tries: attempts to keep two actors apart; after that they may overlap, the later one in front.

    Returns:
        Tracks with arrays of shape (actors, frames).
    """
    if frames < 1 or min(height, width) < 64:
        raise UsageError(f"a clip needs at least 1 frame and 64x64 pixels, got {frames} frames of {height}x{width}")
    best, best_gap = None, -np.inf
    for _ in range(tries if len(scene.actors) > 1 else 1):
        paths = [_path(actor, frames, height, width, rng) for actor in scene.actors]
        tracks = Tracks(*(np.stack(column).astype(np.float32) for column in zip(*paths, strict=True)))
        if len(paths) == 1:
            return tracks
        distance = np.hypot(tracks.x[0] - tracks.x[1], tracks.y[0] - tracks.y[1])
        gap = float((distance - 1.2 * (tracks.radius[0] + tracks.radius[1])).min())
        if gap > best_gap:
            best, best_gap = tracks, gap
        if gap > 1.0:
            break
    return best


def _path(actor: Actor, frames: int, height: int, width: int, rng: np.random.Generator):
    low, high = RADII[actor.size]
    radius = rng.uniform(low, high)
    clock = np.arange(frames, dtype=np.float64)
    progress = clock / max(frames - 1, 1)
    still = np.zeros(frames)
    radii, angle = np.full(frames, radius), still
    reach = 1.25 * radius
    if actor.motion in ("grow", "shrink"):
        small, large = rng.uniform(9.5, 11.5), rng.uniform(23.0, 27.0)
        reach = 1.25 * large
        radii = small + (large - small) * (progress if actor.motion == "grow" else 1 - progress)
    elif actor.motion == "spin":
        angle = np.deg2rad(rng.uniform(*SPIN_DEGREES)) * clock
    spans = []
    for extent, step in zip((width, height), DIRECTIONS.get(actor.motion, (0, 0)), strict=True):
        low, high = reach + MARGIN, extent - reach - MARGIN
        spans.append((low, high, step))
    moves = [_travel(frames, low, high, step, rng) for low, high, step in spans]
    if actor.motion in DIRECTIONS and all(step for *_, step in spans):
        # A diagonal keeps 45 degrees: both axes travel the shorter of the two ways.
        way = min(abs(move[1]) for move in moves)
        moves = [(_start(low, high, step * way, rng), step * way) for low, high, step in spans]
    (x0, dx), (y0, dy) = moves
    x, y = x0 + dx * progress, y0 + dy * progress
    if actor.motion == "bounce":
        y = _bounce(clock, spans[1][0], spans[1][1], rng)
    return x, y, radii, angle


def _travel(frames: int, low: float, high: float, step: int, rng: np.random.Generator) -> tuple[float, float]:
    """Start and signed way along one axis; the way is 2 to 3.6 pixels a frame unless the canvas is too short for it."""
    if not step:
        return _start(low, high, 0.0, rng), 0.0
    free = max(high - low, 0.0)
    way = min(rng.uniform(2.0, 3.6) * (frames - 1), rng.uniform(0.8, 1.0) * free)
    return _start(low, high, step * way, rng), step * way


def _start(low: float, high: float, way: float, rng: np.random.Generator) -> float:
    first, last = low - min(way, 0.0), high - max(way, 0.0)
    return rng.uniform(first, last) if last > first else 0.5 * (low + high) - 0.5 * way


def _bounce(clock: np.ndarray, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(*BOUNCE_PERIOD)
    drop = min(rng.uniform(30.0, 42.0), high - low)
    floor = rng.uniform(max(low + drop, high - 12.0), high) if high > low + drop else high
    u = np.mod(clock / period + 0.5, 1.0)
    return floor - drop * 4.0 * u * (1.0 - u)
