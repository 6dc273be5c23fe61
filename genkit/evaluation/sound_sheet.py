"""Sheets of clips with sound: frames in a row, the waveform of both sides below them, what is seen and heard marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genkit.evaluation.sheet import contact_sheet
from genkit.evaluation.toy_av import SoundClip, seen_and_heard

_PAPER, _WAVE, _SEEN, _HEARD = (252, 252, 250), (70, 90, 140), (30, 150, 60), (210, 60, 40)


def wave_strip(
    sound: np.ndarray, width: int, height: int, seen: Sequence[float] = (), heard: Sequence[float] = ()
) -> np.ndarray:
    """The envelope of a sound over time.

    Args:
        sound: float (samples, channels) in -1..1; channels below each other.
        width, height: of the picture in pixels.
        seen, heard: moments in shares of the duration, marked by lines from the top (green) and from the bottom (red).

    Returns:
        uint8 (height, width, 3).
    """
    page = np.empty((height, width, 3), dtype=np.uint8)
    page[:] = _PAPER
    channels = sound.shape[1]
    lane = height // channels
    edges = np.linspace(0, len(sound), width + 1).astype(int)
    for channel in range(channels):
        middle = channel * lane + lane // 2
        for column, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            piece = sound[start : max(stop, start + 1), channel]
            reach = int(round(min(float(np.abs(piece).max(initial=0.0)) * 2, 1.0) * (lane // 2 - 1)))
            page[middle - reach : middle + reach + 1, column] = _WAVE
    for moments, colour, rows in (
        (seen, _SEEN, slice(0, height // 2)),
        (heard, _HEARD, slice(height // 2, height)),
    ):
        for moment in moments:
            page[rows, min(max(int(moment * width), 0), width - 1)] = colour
    return page


def sound_sheet(
    clips: Sequence[SoundClip], titles: Sequence[str], fps: float, columns: int = 2, frames: int = 5
) -> np.ndarray:
    """Lay clips with sound out for looking at.

    Args:
        clips: equal in size.
        titles: one line per clip.
        fps: frames per second.
        columns: clips side by side.
        frames: frames shown of each clip.

    Returns:
        uint8 (height, width, 3): per clip its title, frames, and the waveform with visible events in green above and
        audible ones in red below.
    """
    cells = []
    for clip, title in zip(clips, titles, strict=True):
        cell = contact_sheet([clip.frames], [title], columns=1, frames=frames)
        seen, heard = seen_and_heard(clip, fps)
        seconds = len(clip.frames) / fps
        times = ([event.time / seconds for event in seen], [event.time / seconds for event in heard])
        cells.append(np.concatenate([cell, wave_strip(clip.sound, cell.shape[1], 64, *times)]))
    blank = np.full_like(cells[0], _PAPER[0])
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    rows[-1] = rows[-1] + [blank] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
