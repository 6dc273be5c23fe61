"""The judge's ears: finds the struck tones of a waveform and compares them with what should be heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from genkit.errors import UsageError
from genkit.world.sound import PITCHES, Event

UNCLEAR = "unclear"
_WINDOW, _HOP, _GAP = 0.020, 0.010, 0.100
_RISE = 0.5
_FLOOR = 1e-6
# A click is noticed when it enters the newest hop: half a hop late on average.
ONSET_BIAS = 0.005


class Timed(Protocol):
    """Anything that happens at a time, with a pitch and a place: an event, or an onset that was heard."""

    time: float
    pitch: float
    pan: float


@dataclass(frozen=True)
class Heard:
    """One onset: time in seconds (the analyser's own bias subtracted), pitch in Hz (nan when there is no clear tone),
    the colour that sounds at this pitch or an octave above it (or ``"unclear"``) and pan from -1 to 1."""

    time: float
    pitch: float
    colour: str
    pan: float


@dataclass(frozen=True)
class EventScore:
    """Agreement of heard with expected events: precision, recall, F1, signed median offset in seconds (nan without a
    match), and the share of matched events whose pitch and side are right."""

    precision: float
    recall: float
    f1: float
    offset: float
    pitch: float
    side: float


def listen(wave: np.ndarray, sample_rate: int) -> list[Heard]:
    """Find the onsets of a sound.

    Args:
        wave: (channels, samples) or (samples,); two channels give pan.
        sample_rate: samples per second.

    Returns:
        Onsets in order of time. Silence and steady noise give none.
    """
    wave = np.atleast_2d(np.asarray(wave, dtype=np.float64))
    if wave.ndim != 2 or wave.shape[0] > 2 or not np.isfinite(wave).all():
        raise UsageError(f"the judge hears finite arrays (1 or 2 channels, samples), got shape {wave.shape}")
    hop, window = int(round(_HOP * sample_rate)), int(round(_WINDOW * sample_rate))
    mono = np.pad(wave.mean(0), (window - hop, 0))
    count = max((len(mono) - window) // hop + 1, 0)
    power = np.array([np.mean(mono[i * hop : i * hop + window] ** 2) for i in range(count)])
    rise = np.maximum(np.diff(np.log10(_FLOOR + power), prepend=np.log10(_FLOOR)), 0.0)
    if not count:
        return []
    threshold = np.median(rise) + _RISE
    heard: list[Heard] = []
    for i in range(count):
        around = rise[max(i - 3, 0) : i + 4]
        time = (i + 0.5) * _HOP - ONSET_BIAS
        if rise[i] > threshold and rise[i] >= around.max() and (not heard or time - heard[-1].time > _GAP):
            heard.append(_describe(wave, sample_rate, time))
    return heard


def _describe(wave: np.ndarray, sample_rate: int, time: float) -> Heard:
    start = int(max(time, 0.0) * sample_rate)
    piece = wave[:, start : start + int(0.1 * sample_rate)]
    spectrum = np.abs(np.fft.rfft(piece.mean(0) * np.hanning(piece.shape[1]), 4 * piece.shape[1])) ** 2
    frequency = np.fft.rfftfreq(4 * piece.shape[1], 1 / sample_rate)
    peak = int(spectrum.argmax())
    near = np.abs(frequency - frequency[peak]) < 60
    pure = spectrum[near].sum() / max(spectrum.sum(), 1e-12)
    pitch = float(frequency[peak]) if pure > 0.5 else float("nan")
    left, right = (float((channel**2).sum()) for channel in (piece[0], piece[-1]))
    pan = 4 / np.pi * np.arctan2(np.sqrt(right), np.sqrt(left)) - 1 if left + right > 0 else 0.0
    return Heard(time, pitch, _colour(pitch), float(pan))


def _colour(pitch: float) -> str:
    """The colour whose pitch lies within 4%, or whose stop tone (an octave below) does, if there is just one."""
    exact = [name for name, value in PITCHES.items() if abs(pitch / value - 1) < 0.04]
    lower = [name for name, value in PITCHES.items() if abs(2 * pitch / value - 1) < 0.04]
    if exact:
        return exact[0]
    return lower[0] if len(lower) == 1 else UNCLEAR


def match_events(expected: Sequence[Timed], found: Sequence[Timed], tolerance: float = 0.25) -> list[tuple]:
    """Pairs (expected, found) whose times lie within ``tolerance`` seconds, one to one, nearest first."""
    near = sorted(
        (abs(f.time - e.time), i, j)
        for i, e in enumerate(expected)
        for j, f in enumerate(found)
        if abs(f.time - e.time) <= tolerance
    )
    matched: list[tuple] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for _, i, j in near:
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            matched.append((expected[i], found[j]))
    return matched


def same_pitch(one: Timed, other: Timed) -> bool:
    """Whether two pitches lie within 4% of each other."""
    return bool(abs(one.pitch / other.pitch - 1) < 0.04)


def same_side(one: Timed, other: Timed) -> bool:
    """Whether two sounds come from the same side; near the middle of the first one's side any is right."""
    return bool(abs(one.pan) < 0.15 or np.sign(other.pan) == np.sign(one.pan))


def compare_events(expected: list[Event], heard: list[Heard], tolerance: float = 0.25) -> EventScore:
    """Match heard onsets with expected events one to one, nearest pairs first.

    Args:
        expected: ground truth.
        heard: from :func:`listen`.
        tolerance: largest distance in seconds of a pair.
    """
    nothing = float("nan")
    if not expected and not heard:
        return EventScore(1.0, 1.0, 1.0, nothing, nothing, nothing)
    matched = match_events(expected, heard, tolerance)
    precision = len(matched) / len(heard) if heard else 0.0
    recall = len(matched) / len(expected) if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if matched else 0.0
    if not matched:
        return EventScore(precision, recall, f1, nothing, nothing, nothing)
    offset = float(np.median([h.time - e.time for e, h in matched]))
    pitch = float(np.mean([same_pitch(h, e) for e, h in matched]))
    side = float(np.mean([same_side(e, h) for e, h in matched]))
    return EventScore(precision, recall, f1, offset, pitch, side)
