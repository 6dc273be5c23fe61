"""What a clip shows: actors with a colour, shape, size and motion on a background, and how scenes are drawn at random.

A :class:`Scene` is the discrete description (the ground truth of a caption). :func:`lay_out` turns it into
:class:`Tracks`, the continuous path of every actor for a given canvas and length. Everything follows from a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FIRST_BACKGROUNDS,
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
# Farthest point from the centre in units of the radius, at any angle.
_REACH = {"circle": 1.0, "square": 1.26, "triangle": 1.56, "cross": 1.2}


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
    area in pixels, ``angle`` in radians clockwise. ``moments`` holds for every actor the frames (with fractions) at
    which something happens: ``(frame, "bounce" | "start" | "stop")``.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    moments: tuple[tuple[tuple[float, str], ...], ...] = ()


def _bucket(actor: Actor, background: str) -> int:
    key = f"{actor.colour}/{actor.shape}/{actor.motion}/{background}"
    return hashlib.sha256(key.encode()).digest()[0]


def split_of(scene: Scene) -> str:
    """The split a scene belongs to.

    ``held_out_pair``: an actor has a colour-shape pair that training never shows. ``held_out_tuple``: every pair is
    known, but a (colour, shape, motion, background) tuple is of the tenth that training never shows. Else ``train``.
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
    backgrounds: Sequence[str] = FIRST_BACKGROUNDS,
) -> Scene:
    """Draw a scene at random from a split.

    Args:
        rng: source of randomness.
        split: one of ``train``, ``held_out_tuple``, ``held_out_pair``, ``any``.
        actors: 1 or 2; by default two with probability ``two_share``.
        moving: False for pictures, whose actors are all ``still``.
        two_share: probability of a second actor.
        backgrounds: names to draw the background from.
    """
    if split not in SPLITS:
        raise UsageError(f"split: got {split!r}, allowed: {', '.join(SPLITS)}")
    check_backgrounds(backgrounds)
    names = tuple(COLOURS)
    while True:
        count = actors or (2 if rng.random() < two_share else 1)
        first = int(rng.integers(len(names)))
        colours = [names[first], names[(first + int(rng.integers(1, len(names)))) % len(names)]][:count]
        grounds = [name for name in backgrounds if name not in colours]
        if not grounds:
            continue
        background = pick(rng, grounds)
        cast = []
        for colour in colours:
            shape = pick(rng, SHAPES)
            motion = _draw_motion(rng, shape) if moving else "still"
            size = pick(rng, SIZES if count == 1 else SIZES[:2])
            if motion in ("grow", "shrink"):
                size = "medium"
            cast.append(Actor(colour, shape, size, motion))
        scene = Scene(tuple(cast), background)
        if split in ("any", split_of(scene)):
            return scene


_MOTION_GROUPS = (
    ("left", "right", "up", "down"),
    tuple(DIRECTIONS)[4:],
    ("still",),
    ("bounce",),
    ("grow",),
    ("shrink",),
    ("spin",),
)
_MOTION_SHARES = (0.36, 0.18, 0.09, 0.09, 0.09, 0.09, 0.10)


def check_backgrounds(backgrounds: Sequence[str]) -> None:
    """Refuse names of backgrounds that are none, and no names at all."""
    wrong = [name for name in backgrounds if name not in BACKGROUNDS]
    if wrong or not backgrounds:
        raise UsageError(explain("backgrounds", wrong[0] if wrong else "none", BACKGROUNDS))


def pick(rng: np.random.Generator, options):
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _draw_motion(rng: np.random.Generator, shape: str) -> str:
    while True:
        level, group = rng.random(), _MOTION_GROUPS[-1]
        for candidate, share in zip(_MOTION_GROUPS, _MOTION_SHARES, strict=True):
            if level < share:
                group = candidate
                break
            level -= share
        motion = pick(rng, group)
        if not (motion == "spin" and shape == "circle"):
            return motion


def lay_out(
    scene: Scene,
    frames: int,
    height: int,
    width: int,
    rng: np.random.Generator,
    tries: int = 40,
    holds: bool = False,
) -> Tracks:
    """Choose start points, speeds and radii so that every actor stays inside and two actors do not meet.

    Args:
        scene: what to show.
        frames: number of frames, at least 1.
        height, width: canvas in pixels, at least 64.
        rng: source of randomness.
        tries: attempts to keep two actors apart; after that they may overlap, the later one in front.
        holds: let actors with a direction wait before they start and rest after they stop, inside the clip.

    Returns:
        Tracks with arrays of shape (actors, frames).
    """
    if frames < 1 or min(height, width) < 64:
        raise UsageError(f"a clip needs at least 1 frame and 64x64 pixels, got {frames} frames of {height}x{width}")
    best, best_gap = None, -np.inf
    for _ in range(tries if len(scene.actors) > 1 else 1):
        paths = [_path(actor, frames, height, width, rng, holds) for actor in scene.actors]
        *columns, moments = zip(*paths, strict=True)
        tracks = Tracks(*(np.stack(column).astype(np.float32) for column in columns), moments)
        if len(paths) == 1:
            return tracks
        gap = actor_gap(tracks)
        if gap > best_gap:
            best, best_gap = tracks, gap
        if gap > 1.0:
            break
    return best


def actor_gap(tracks: Tracks) -> float:
    """Smallest distance in pixels ever left between two actors (negative when they may touch); infinite for one."""
    if len(tracks.x) < 2:
        return float("inf")
    distance = np.hypot(tracks.x[0] - tracks.x[1], tracks.y[0] - tracks.y[1])
    return float((distance - 1.2 * (tracks.radius[0] + tracks.radius[1])).min())


def _path(actor: Actor, frames: int, height: int, width: int, rng: np.random.Generator, holds: bool):
    """Columns x, y, radius, angle and the moments of one actor."""
    low, high = RADII[actor.size]
    radius = rng.uniform(low, high)
    clock = np.arange(frames, dtype=np.float64)
    progress = clock / max(frames - 1, 1)
    moments: tuple[tuple[float, str], ...] = ()
    if holds and actor.motion in DIRECTIONS and frames >= 9:
        first, last = rng.uniform(0.1, 0.25) * (frames - 1), rng.uniform(0.7, 0.85) * (frames - 1)
        progress = np.clip((clock - first) / (last - first), 0.0, 1.0)
        moments = ((first, "start"), (last, "stop"))
    still = np.zeros(frames)
    radii, angle = np.full(frames, radius), still
    reach = _REACH[actor.shape] * radius
    if actor.motion in ("grow", "shrink"):
        small, large = rng.uniform(11.5, 13.0), rng.uniform(25.0, 28.0)
        reach = _REACH[actor.shape] * large
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
        period = rng.uniform(*BOUNCE_PERIOD)
        y = _bounce(clock / period, spans[1][0], spans[1][1], rng)
        contacts = period * (np.arange(int(frames / period) + 1) + 0.5)
        moments = tuple((float(frame), "bounce") for frame in contacts if frame <= frames - 1)
    return x, y, radii, angle, moments


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


def _bounce(periods: np.ndarray, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Height over time, in periods: starts at the top, meets the floor at every half-integer."""
    drop = min(rng.uniform(30.0, 42.0), high - low)
    floor = rng.uniform(max(low + drop, high - 12.0), high) if high > low + drop else high
    u = np.mod(periods + 0.5, 1.0)
    return floor - drop * 4.0 * u * (1.0 - u)
