"""The judge: reads colour, shape, size, place, motion, count and background back from the pixels of a clip.

Everything is arithmetic on pixels: the border gives the background, nearest palette colours give the objects, rotation
invariant moments give the shape, and the tracks of centre, area and orientation give the motion. Where the evidence is
weak the judge answers ``"unclear"`` rather than guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genkit.errors import UsageError
from genkit.world.reading import (
    MIN_AREA,
    PALETTE_REACH,
    SOFT_LIMIT,
    UNCLEAR,
    connected,
    dilate,
    erode,
    nearest_shape,
    read_background,
    read_box,
    read_moments,
    read_place,
    read_shape,
    read_size,
)
from genkit.world.scene import Scene
from genkit.world.vocabulary import COLOURS, DIRECTIONS, PALETTE

# Pixels of an object's core, in the mean over the frames and in a frame in which it is present.
_LEAST_CORE, _PRESENT_CORE = 24, 12
# A part of a colour's core below this share of the largest one is a crumb of it, not an object.
_CRUMB = 0.05


@dataclass(frozen=True)
class SeenActor:
    """One object the judge found; every field may be ``"unclear"``.

    ``x``, ``y`` and ``area`` are per-frame tracks in pixels. ``nearest_shape`` is the shape by forced choice, for
    telling a rough outline from a wrong one. ``boxes`` (frames, 4) are left, top, right and bottom in pixels, NaN where
    the object is not seen.
    """

    colour: str
    shape: str
    size: str
    motion: str
    place: tuple[str, str]
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    area: np.ndarray = field(repr=False)
    nearest_shape: str = UNCLEAR
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)), repr=False)


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: the objects from largest to smallest, the background, and why something is unclear."""

    actors: tuple[SeenActor, ...]
    background: str
    notes: tuple[str, ...] = ()


def judge_clip(clip: np.ndarray) -> Verdict:
    """Read a clip.

    Args:
        clip: uint8 (frames, height, width, 3); one frame is a picture and gives motion ``"still"``.

    Returns:
        The verdict. Never raises on strange pictures: they are ``"unclear"``.
    """
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
        raise UsageError(f"the judge reads uint8 arrays (frames, height, width, 3), got {clip.dtype} {clip.shape}")
    pixels = clip.astype(np.float32)
    notes: list[str] = []
    background, ground = read_background(pixels, notes)
    if background == UNCLEAR:
        return Verdict((), UNCLEAR, tuple(notes))
    masks = _colour_masks(pixels, ground, background, notes)
    actors = [_describe(pixels, ground, colour, core, others, notes) for colour, core, others in masks]
    return Verdict(tuple(actors), background, tuple(notes))


def score(scene: Scene, verdict: Verdict, moving: bool = True) -> dict[str, bool]:
    """Compare a verdict with the scene that was asked for.

    Actors are matched by colour first, then by order. Returns one boolean per attribute: ``background``, ``count``,
    ``colour``, ``shape``, ``size``, ``motion`` (only for ``moving`` clips) and ``all``; attributes of actors are right
    only when they are right for every actor. ``size`` is left out for growing and shrinking actors. ``nearest shape``,
    the forced choice, is told besides and has no part in ``all``.
    """
    result = {"background": verdict.background == scene.background, "count": len(verdict.actors) == len(scene.actors)}
    pairs = match_actors(scene, verdict)
    sized = [pair for pair in pairs if pair[0].motion not in ("grow", "shrink")]
    for name, chosen in (("colour", pairs), ("shape", pairs), ("size", sized), ("motion", pairs if moving else [])):
        if chosen:
            result[name] = all(
                seen is not None and getattr(seen, name) == getattr(asked, name) for asked, seen in chosen
            )
    result["all"] = all(result.values())
    result["nearest shape"] = all(seen is not None and seen.nearest_shape == asked.shape for asked, seen in pairs)
    return result


def match_actors(scene, verdict) -> list[tuple]:
    """Pairs (asked actor, seen actor or None): by colour first, what is left in order."""
    free = list(verdict.actors)
    pairs = []
    for asked in scene.actors:
        same = next((seen for seen in free if seen.colour == asked.colour), None)
        if same is not None:
            free.remove(same)
        pairs.append([asked, same])
    for pair in pairs:
        if pair[1] is None and free:
            pair[1] = free.pop(0)
    return [tuple(pair) for pair in pairs]


def _colour_masks(pixels: np.ndarray, ground: np.ndarray, background: str, notes: list[str]) -> list[tuple]:
    """Core masks of the colours that form an object, largest first, each with the cores of the other objects."""
    names = list(COLOURS)
    frames = len(pixels)
    off_ground = np.abs(pixels - ground).max(-1) > 20.0
    points = pixels[off_ground]
    distance = np.linalg.norm(points[:, None] - PALETTE[None], axis=-1)
    nearest, gap = distance.argmin(-1), distance.min(-1)
    solid = (gap < PALETTE_REACH) & (np.linalg.norm(points - ground, axis=-1) > gap)
    found = []
    for index, name in enumerate(names):
        chosen = solid & (nearest == index)
        if name == background or chosen.sum() < 24 * frames:
            continue
        # Eroding twice removes the rims where object and background mix into a third colour.
        core = np.zeros(off_ground.shape, dtype=bool)
        core[off_ground] = chosen
        core = erode(core, 2)
        area = core.sum(axis=(1, 2))
        present = area >= _PRESENT_CORE
        if area.mean() < _LEAST_CORE or present.mean() < 0.5:
            continue
        if present.mean() < 0.9:
            notes.append(f"the {name} object is missing in {1 - present.mean():.0%} of the {frames} frames")
        found.extend((float(part.sum(axis=(1, 2)).mean()), name, part) for part in _same_coloured(core))
    found.sort(key=lambda row: -row[0])
    cores = [core for *_, core in found]
    result = []
    for position, (_, name, core) in enumerate(found):
        others = np.zeros_like(core)
        for j, other in enumerate(cores):
            if j != position:
                others |= other
        result.append((name, core, others))
    return result


def _same_coloured(core: np.ndarray) -> list[np.ndarray]:
    """A colour's core (frames, height, width) as one mask per object: its parts, followed from frame to frame.

    Parts count as objects where most frames have as many; an object that is one part in most frames stays whole.
    """
    frames = [_parts(frame) for frame in core]
    counts = sorted(len(parts) for parts in frames if parts)
    # The lower of two middle ones: a number that some frame has. A core in crumbs alone has no parts at all.
    number = counts[(len(counts) - 1) // 2] if counts else 0
    if number < 2:
        return [core]
    first = next(i for i, parts in enumerate(frames) if len(parts) == number)
    found = np.zeros((number, *core.shape), dtype=bool)
    for steps in (range(first, len(frames)), range(first, -1, -1)):
        centres = np.array([_centre(part) for part in frames[first]])
        for step in steps:
            # Nearest pairs first, every object at most one part: where two touch, one of them is not seen.
            distance = np.array([[np.hypot(*(c - _centre(part))) for part in frames[step]] for c in centres])
            while distance.size and np.isfinite(distance).any():
                mine, part = np.unravel_index(distance.argmin(), distance.shape)
                found[mine, step] = frames[step][part]
                centres[mine] = _centre(frames[step][part])
                distance[mine], distance[:, part] = np.inf, np.inf
    areas = found.sum(axis=(2, 3))
    kept = (areas.mean(1) >= _LEAST_CORE) & ((areas >= _PRESENT_CORE).mean(1) >= 0.5)
    return list(found[kept]) if kept.sum() > 1 else [core]


def _parts(frame: np.ndarray) -> list[np.ndarray]:
    """Connected parts of one frame of a core, without crumbs."""
    if not frame.any():
        return []
    rows, columns = (np.flatnonzero(frame.any(axis)) for axis in (1, 0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    parts = connected(frame[window], _PRESENT_CORE)
    largest = max((part.sum() for part in parts), default=0)
    whole = []
    for part in parts:
        if part.sum() >= _CRUMB * largest:
            full = np.zeros_like(frame)
            full[window] = part
            whole.append(full)
    return whole


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def _describe(pixels, ground, colour, core, others, notes) -> SeenActor:
    entry = np.array(COLOURS[colour], dtype=np.float32)
    axis = entry - ground
    alpha = np.clip(((pixels - ground) @ axis) / float(axis @ axis), 0.0, 1.0)
    near = dilate(core, 5)
    if others.any():
        near &= ~dilate(others, 4)
    alpha = np.where(near, alpha, 0.0)
    alpha[alpha < 0.15] = 0.0
    steps = [read_moments(frame) for frame in alpha]
    area, x, y, harmonics, solidity = (np.array(column) for column in zip(*steps, strict=True))
    usable = area >= MIN_AREA
    whole = bool(usable.mean() >= 0.8)
    if not whole:
        notes.append(f"the {colour} object is too small or absent in {(~usable).mean():.0%} of the frames")
    shape = nearest = UNCLEAR
    if usable.any():
        shape = read_shape(harmonics[usable], solidity[usable], colour, notes)
        nearest = nearest_shape(harmonics[usable], solidity[usable])
    softness = float((4 * alpha * (1 - alpha)).sum() / max(alpha.sum(), 1.0))
    if softness > SOFT_LIMIT:
        notes.append(f"the {colour} object has no sharp outline (softness {softness:.2f})")
        shape = UNCLEAR
    height, width = pixels.shape[1:3]
    motion = _motion(x, y, area, harmonics, shape) if whole and usable.all() else UNCLEAR
    place = read_place(x, y, width, height)
    boxes = np.stack([read_box(frame) for frame in alpha])
    return SeenActor(colour, shape, read_size(area[usable]), motion, place, x, y, area, nearest, boxes)


def _motion(x, y, area, harmonics, shape: str) -> str:
    """Motion from the tracks; ``"unclear"`` when two readings compete."""
    if len(x) == 1:
        return "still"
    radius = float(np.sqrt(np.median(area) / np.pi))
    growth = float(np.log(area[-3:].mean() / area[:3].mean())) if len(area) >= 6 else float(np.log(area[-1] / area[0]))
    across, down = float(x[-1] - x[0]), float(y[-1] - y[0])
    way = float(np.hypot(across, down))
    wander = float(np.hypot(np.ptp(x), np.ptp(y)))
    if abs(growth) > 0.8:
        return UNCLEAR if wander > 0.7 * radius else ("grow" if growth > 0 else "shrink")
    if abs(growth) > 0.45:
        return UNCLEAR
    if np.ptp(x) < 0.35 * np.ptp(y) and np.ptp(y) > 12 and turns(y) >= 1 and _travelled(y) > 1.5 * abs(down) + 8:
        return "bounce"
    if way > max(10.0, 0.6 * radius):
        steady = _travelled_plane(x, y) < 1.6 * way + 4
        angle = np.arctan2(down, across)
        best = max(DIRECTIONS, key=lambda name: np.cos(angle - np.arctan2(DIRECTIONS[name][1], DIRECTIONS[name][0])))
        return best if steady else UNCLEAR
    if wander > 8.0:
        return UNCLEAR
    fold = 3 if shape == "triangle" else 4
    if shape != "circle" and abs(_rotation(harmonics[:, fold - 2], fold)) > 25:
        return "spin"
    return "still"


def turns(y: np.ndarray) -> int:
    """Changes of vertical direction, ignoring wiggles below three pixels."""
    direction, turns, extreme = 0, 0, y[0]
    for value in y[1:]:
        if direction >= 0 and value > extreme or direction <= 0 and value < extreme:
            if direction == 0 and abs(value - extreme) < 3:
                continue
            direction = direction or (1 if value > extreme else -1)
            extreme = value
        elif abs(value - extreme) >= 3:
            turns, direction, extreme = turns + 1, -direction, value
    return turns


def _travelled(track: np.ndarray) -> float:
    return float(np.abs(np.diff(track)).sum())


def _travelled_plane(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.hypot(np.diff(x), np.diff(y)).sum())


def _rotation(harmonic: np.ndarray, fold: int) -> float:
    """Degrees turned over the clip, from the phase of the ``fold``-fold harmonic."""
    phase = np.unwrap(np.angle(harmonic))
    return float(np.rad2deg(phase[-1] - phase[0]) / fold)
