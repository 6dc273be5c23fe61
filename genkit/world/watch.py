"""The judge's eyes for events: when something bounces, starts or stops, read back from the tracks of what is seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genkit.world.judge import SeenActor, Verdict
from genkit.world.scene import BOUNCE_PERIOD, DIRECTIONS
from genkit.world.sound import OCTAVES, PITCHES, Event

# Periods of a bounce in frames that are tried, and the phase at the first frame, 0 being the top.
_PERIODS = np.arange(BOUNCE_PERIOD[0] - 3.0, BOUNCE_PERIOD[1] + 4.0, 0.1)
_PHASES = np.arange(-0.5, 0.5, 0.02)
# A motion may begin and end at half-frame steps; the error in pixels must be that much smaller than with motion from
# the first frame to the last. What begins earlier than half a frame has been going on before the clip.
_STEP, _GAIN = 0.5, 0.25
_EARLIEST = 0.5


def watch(verdict: Verdict, fps: float, width: int) -> list[Event]:
    """Events that can be seen in a clip, in order of time.

    Args:
        verdict: from :func:`genkit.world.judge.judge_clip`.
        fps: frames per second.
        width: of the canvas in pixels.

    Returns:
        The events that should be heard: for every object that bounces its contacts with the floor, for every object
        with a direction the start and the stop, if they lie inside the clip. Objects whose motion is unclear give none.
    """
    events = []
    for actor in verdict.actors:
        clock = np.arange(len(actor.x))
        for frame, kind in _moments(actor):
            pan = float(np.clip(2 * np.interp(frame, clock, actor.x) / width - 1, -1, 1))
            events.append(Event(frame / fps, kind, actor.colour, PITCHES[actor.colour] * OCTAVES[kind], pan))
    return sorted(events, key=lambda event: event.time)


def _moments(actor: SeenActor) -> Iterator[tuple[float, str]]:
    if not (np.isfinite(actor.x).all() and np.isfinite(actor.y).all()):
        return
    if actor.motion == "bounce":
        yield from ((frame, "bounce") for frame in _contacts(actor.y))
    elif actor.motion in DIRECTIONS:
        across, down = DIRECTIONS[actor.motion]
        begin, end = _travel(across * actor.x + down * actor.y)
        last = len(actor.x) - 1
        yield from ((frame, kind) for frame, kind in ((begin, "start"), (end, "stop")) if _EARLIEST < frame < last)


def _residuals(shapes: np.ndarray, track: np.ndarray) -> np.ndarray:
    """What the best ``a + b * shape`` leaves of a track (frames,), root mean square, for every shape (..., frames)."""
    centred = shapes - shapes.mean(-1, keepdims=True)
    rest = track - track.mean()
    power = np.maximum((centred**2).sum(-1), 1e-9)
    left = (rest**2).sum() - (centred @ rest) ** 2 / power
    return np.sqrt(np.maximum(left, 0.0) / len(track))


def _contacts(y: np.ndarray) -> list[float]:
    """Frames at which a bouncing track touches the floor, by the period and phase of the best bouncing parabola."""
    clock = np.arange(len(y))
    turns = clock / _PERIODS[:, None, None] + _PHASES[:, None] + 0.5
    height = np.mod(turns, 1.0)
    error = _residuals(4.0 * height * (1.0 - height), y)
    best = np.unravel_index(error.argmin(), error.shape)
    period, phase = _PERIODS[best[0]], _PHASES[best[1]]
    first = int(np.ceil(phase + 0.5))
    contacts = period * (np.arange(first, first + len(y)) - phase - 0.5)
    return [float(frame) for frame in contacts if 0 <= frame <= len(y) - 1]


def _travel(track: np.ndarray) -> tuple[float, float]:
    """Frames at which a motion along a line begins and ends; the ends of the clip where it goes on all the time."""
    last = len(track) - 1
    clock = np.arange(len(track))
    starts = np.arange(0.0, last - 2.0, _STEP)
    stops = np.arange(2.0, last + _STEP, _STEP)
    begin, end = (grid.ravel() for grid in np.meshgrid(starts, stops, indexing="ij"))
    begin, end = begin[end - begin >= 2.0], end[end - begin >= 2.0]
    error = _residuals(np.clip((clock - begin[:, None]) / (end - begin)[:, None], 0.0, 1.0), track)
    whole = error[(begin == 0.0) & (end == last)]
    best = int(error.argmin())
    if not len(whole) or whole[0] - error[best] < _GAIN:
        return 0.0, float(last)
    return _finer(track, float(begin[best]), float(end[best]))


def _finer(track: np.ndarray, begin: float, end: float) -> tuple[float, float]:
    """Begin and end to a twentieth of a frame, around what the coarse search found."""
    clock, last = np.arange(len(track)), len(track) - 1
    around = np.arange(-_STEP, _STEP + 0.01, 0.05)
    starts, stops = np.clip(begin + around, 0.0, None), np.clip(end + around, None, last)
    grid = np.stack([column.ravel() for column in np.meshgrid(starts, stops, indexing="ij")])
    error = _residuals(np.clip((clock - grid[0][:, None]) / (grid[1] - grid[0])[:, None], 0.0, 1.0), track)
    return tuple(float(value) for value in grid[:, error.argmin()])
