"""The judge: reads colour, shape, size, place, motion, count and background back from the pixels of a clip.

Everything is arithmetic on pixels: the border gives the background, nearest palette colours give the objects, rotation
invariant moments give the shape, and the tracks of centre, area and orientation give the motion. Where the evidence is
weak the judge answers ``"unclear"`` rather than guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genkit.errors import UsageError
from genkit.world.scene import Scene
from genkit.world.vocabulary import BACKGROUND_PALETTE, BACKGROUNDS, COLOURS, DIRECTIONS, PALETTE

UNCLEAR = "unclear"

# Distances in RGB units of 0..255.
_PALETTE_REACH = 56.0
_BACKGROUND_REACH = 44.0
_MIN_AREA = 90.0
# Rotation-invariant figures of perfect shapes: size of the twofold, threefold and fourfold harmonic, and solidity
# (share of the convex hull that is filled, as measured on pixels).
_SHAPE_FIGURES = {
    "circle": (0.0, 0.0, 0.0, 0.98),
    "square": (0.0, 0.0, 0.43, 0.94),
    "triangle": (0.0, 0.66, 0.0, 0.90),
    "cross": (0.0, 0.0, 0.47, 0.73),
}
_FIGURE_WEIGHTS = np.array([0.7, 1.0, 1.0, 1.6])
# Share of a mask's weight in half-covered pixels: about 0.1 for a crisp outline, 0.3 for a rim of three pixels.
_SOFT_LIMIT = 0.6
_SHAPE_REACH = 0.21
_HULL_ANGLES = np.deg2rad(np.arange(0, 360, 7.5))


@dataclass(frozen=True)
class SeenActor:
    """One object the judge found; every field may be ``"unclear"``.

    ``x``, ``y`` and ``area`` are per-frame tracks in pixels.
    """

    colour: str
    shape: str
    size: str
    motion: str
    place: tuple[str, str]
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    area: np.ndarray = field(repr=False)


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
    background, ground = _background(pixels, notes)
    if background == UNCLEAR:
        return Verdict((), UNCLEAR, tuple(notes))
    masks = _colour_masks(pixels, ground, background, notes)
    actors = [_describe(pixels, ground, colour, core, others, notes) for colour, core, others in masks]
    return Verdict(tuple(actors), background, tuple(notes))


def score(scene: Scene, verdict: Verdict, moving: bool = True) -> dict[str, bool]:
    """Compare a verdict with the scene that was asked for.

    Actors are matched by colour first, then by order. Returns one boolean per attribute: ``background``, ``count``,
    ``colour``, ``shape``, ``size``, ``motion`` (only for ``moving`` clips) and ``all``; attributes of actors are right
    only when they are right for every actor. ``size`` is left out for growing and shrinking actors.
    """
    result = {"background": verdict.background == scene.background, "count": len(verdict.actors) == len(scene.actors)}
    pairs = _match(scene, verdict)
    sized = [pair for pair in pairs if pair[0].motion not in ("grow", "shrink")]
    for name, chosen in (("colour", pairs), ("shape", pairs), ("size", sized), ("motion", pairs if moving else [])):
        if chosen:
            result[name] = all(
                seen is not None and getattr(seen, name) == getattr(asked, name) for asked, seen in chosen
            )
    result["all"] = all(result.values())
    return result


def _match(scene: Scene, verdict: Verdict) -> list[tuple]:
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


def _background(pixels: np.ndarray, notes: list[str]) -> tuple[str, np.ndarray]:
    """Name and colour of the background: most border pixels of every frame must agree on one palette entry."""
    edge = max(2, min(pixels.shape[1:3]) // 32)
    border = np.concatenate(
        [
            pixels[:, :edge].reshape(len(pixels), -1, 3),
            pixels[:, -edge:].reshape(len(pixels), -1, 3),
            pixels[:, :, :edge].reshape(len(pixels), -1, 3),
            pixels[:, :, -edge:].reshape(len(pixels), -1, 3),
        ],
        axis=1,
    )
    ground = np.median(border.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(BACKGROUND_PALETTE - ground, axis=1)
    best = int(distance.argmin())
    agree = (np.linalg.norm(border - BACKGROUND_PALETTE[best], axis=-1) < _BACKGROUND_REACH).mean(axis=1)
    if distance[best] > _BACKGROUND_REACH or agree.min() < 0.6:
        notes.append(
            f"background: nearest palette colour is {distance[best]:.0f} away, {agree.min():.0%} of the border agrees"
        )
        return UNCLEAR, ground
    return list(BACKGROUNDS)[best], ground


def _erode(mask: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        inner = mask.copy()
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        inner[:, :, 1:] &= mask[:, :, :-1]
        inner[:, :, :-1] &= mask[:, :, 1:]
        mask = inner
    return mask


def _dilate(mask: np.ndarray, times: int) -> np.ndarray:
    return ~_erode(~mask, times)


def _colour_masks(pixels: np.ndarray, ground: np.ndarray, background: str, notes: list[str]) -> list[tuple]:
    """Core masks of the colours that form an object, largest first, each with the cores of the other objects."""
    names = list(COLOURS)
    frames = len(pixels)
    off_ground = np.abs(pixels - ground).max(-1) > 20.0
    points = pixels[off_ground]
    distance = np.linalg.norm(points[:, None] - PALETTE[None], axis=-1)
    nearest, gap = distance.argmin(-1), distance.min(-1)
    solid = (gap < _PALETTE_REACH) & (np.linalg.norm(points - ground, axis=-1) > gap)
    found = []
    for index, name in enumerate(names):
        chosen = solid & (nearest == index)
        if name == background or chosen.sum() < 24 * frames:
            continue
        # Eroding twice removes the rims where object and background mix into a third colour.
        core = np.zeros(off_ground.shape, dtype=bool)
        core[off_ground] = chosen
        core = _erode(core, 2)
        area = core.sum(axis=(1, 2))
        present = area >= 12
        if area.mean() < 24 or present.mean() < 0.5:
            continue
        if present.mean() < 0.9:
            notes.append(f"the {name} object is missing in {1 - present.mean():.0%} of the {frames} frames")
        found.append((float(area.mean()), name, core))
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


def _describe(pixels, ground, colour, core, others, notes) -> SeenActor:
    entry = np.array(COLOURS[colour], dtype=np.float32)
    axis = entry - ground
    alpha = np.clip(((pixels - ground) @ axis) / float(axis @ axis), 0.0, 1.0)
    near = _dilate(core, 5)
    if others.any():
        near &= ~_dilate(others, 4)
    alpha = np.where(near, alpha, 0.0)
    alpha[alpha < 0.15] = 0.0
    steps = [_moments(frame) for frame in alpha]
    area, x, y, harmonics, solidity = (np.array(column) for column in zip(*steps, strict=True))
    usable = area >= _MIN_AREA
    whole = bool(usable.mean() >= 0.8)
    if not whole:
        notes.append(f"the {colour} object is too small or absent in {(~usable).mean():.0%} of the frames")
    shape = _shape(harmonics[usable], solidity[usable], colour, notes) if usable.any() else UNCLEAR
    softness = float((4 * alpha * (1 - alpha)).sum() / max(alpha.sum(), 1.0))
    if softness > _SOFT_LIMIT:
        notes.append(f"the {colour} object has no sharp outline (softness {softness:.2f})")
        shape = UNCLEAR
    height, width = pixels.shape[1:3]
    motion = _motion(x, y, area, harmonics, shape) if whole and usable.all() else UNCLEAR
    return SeenActor(colour, shape, _size(area[usable]), motion, _place(x, y, width, height), x, y, area)


def _moments(alpha: np.ndarray) -> tuple:
    """Area, centre, the twofold, threefold and fourfold harmonics (complex) and solidity of one soft mask."""
    area = float(alpha.sum())
    if area < 1.0:
        return 0.0, np.nan, np.nan, np.zeros(3, complex), np.nan
    rows, columns = np.nonzero(alpha)
    weight = alpha[rows, columns]
    x, y = float((weight * columns).sum() / area), float((weight * rows).sum() / area)
    z = (columns - x) + 1j * (rows - y)
    radius = np.abs(z)
    harmonics = np.array([(weight * z**n).sum() / max((weight * radius**n).sum(), 1e-6) for n in (2, 3, 4)])
    return area, x + 0.5, y + 0.5, harmonics, _solidity(z[weight > 0.5], area)


def _solidity(points: np.ndarray, area: float) -> float:
    """Area over the area of the convex hull, by the hull's support function in fixed directions."""
    if not len(points):
        return np.nan
    # Half a pixel from a pixel's centre to its edge.
    reach = (points[:, None] * np.exp(-1j * _HULL_ANGLES)).real.max(axis=0) + 0.5
    step = _HULL_ANGLES[1] - _HULL_ANGLES[0]
    edges = (np.roll(reach, -1) + np.roll(reach, 1) - 2 * reach * np.cos(step)) / np.sin(step)
    return area / (0.5 * float((reach * edges).sum()))


def _shape(harmonics: np.ndarray, solidity: np.ndarray, colour: str, notes: list[str]) -> str:
    """Nearest perfect shape by harmonics (frames, 3) and solidity (frames,); most frames must agree."""
    seen = np.concatenate([np.abs(harmonics), solidity[:, None]], axis=-1)
    table = np.array(list(_SHAPE_FIGURES.values()))
    distance = np.linalg.norm((seen[:, None] - table[None]) * _FIGURE_WEIGHTS, axis=-1)
    middle = np.linalg.norm((np.nanmedian(seen, axis=0) - table) * _FIGURE_WEIGHTS, axis=-1)
    best = int(middle.argmin())
    agreement = float((distance.argmin(-1) == best).mean())
    second = float(np.partition(middle, 1)[1])
    if not middle[best] < min(_SHAPE_REACH, 0.8 * second) or agreement < 0.6:
        notes.append(
            f"the {colour} outline is {middle[best]:.2f} from the nearest shape, {agreement:.0%} of frames agree"
        )
        return UNCLEAR
    return list(_SHAPE_FIGURES)[best]


def _size(area: np.ndarray) -> str:
    if not len(area):
        return UNCLEAR
    radius = float(np.sqrt(np.median(area) / np.pi))
    return "small" if radius < 15.5 else "medium" if radius < 20.7 else "big"


def _place(x: np.ndarray, y: np.ndarray, width: int, height: int) -> tuple[str, str]:
    """Horizontal and vertical third in which the object starts."""
    if not len(x) or np.isnan(x[0]):
        return (UNCLEAR, UNCLEAR)
    across = ("left", "middle", "right")[min(int(3 * x[0] / width), 2)]
    down = ("top", "middle", "bottom")[min(int(3 * y[0] / height), 2)]
    return across, down


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
    if np.ptp(x) < 0.35 * np.ptp(y) and np.ptp(y) > 12 and _turns(y) >= 1 and _travelled(y) > 1.5 * abs(down) + 8:
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


def _turns(y: np.ndarray) -> int:
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
