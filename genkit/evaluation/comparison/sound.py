"""How far two soundtracks are apart: log-mel spectrograms, and the times of what sets in."""

from __future__ import annotations

from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.world.listen import listen, match_events

BANDS, WINDOW, HOP, LOWEST = 64, 0.032, 0.010, 40.0
#: Power below the loudest of the baseline that counts as silence.
FLOOR_DB = 80.0
#: Onsets further apart are not the same event.
TOLERANCE = 0.25


def mel_filters(rate: int, size: int, bands: int = BANDS) -> np.ndarray:
    """Triangles on the mel scale (O'Shaughnessy 1987: 2595 log10(1 + f / 700)), (bands, size // 2 + 1)."""

    def mel(hertz: Any) -> Any:
        return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(LOWEST), mel(rate / 2), bands + 2)
    places = mel(np.fft.rfftfreq(size, 1 / rate))
    rising = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    empty = filters.sum(1) == 0  # a band between two bins of a short window takes the nearest
    filters[empty, np.abs(places - edges[1:-1][empty, None]).argmin(1)] = 1.0
    return filters


def log_mel(sound: np.ndarray, rate: int) -> np.ndarray:
    """Power in decibels of a sound (S, channels) in mel bands, channels averaged, (frames, bands)."""
    mono = np.asarray(sound, dtype=np.float64)
    mono = mono.mean(1) if mono.ndim == 2 else mono
    size, hop = round(WINDOW * rate), round(HOP * rate)
    mono = np.pad(mono, (0, max(0, size - len(mono))))
    pieces = np.lib.stride_tricks.sliding_window_view(mono, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2
    return 10 * np.log10(power @ mel_filters(rate, size).T + 1e-12)


def mel_distance(sound: np.ndarray, baseline: np.ndarray, rate: int) -> float:
    """Mean |difference| of two log-mel spectrograms in decibels; what lies 80 dB below the baseline's loudest is
    silence in both.

    Raises:
        UsageError: sounds of different shapes.
    """
    if np.shape(sound) != np.shape(baseline):
        raise UsageError(f"the sounds differ in shape: {np.shape(sound)} and {np.shape(baseline)}")
    one, other = log_mel(sound, rate), log_mel(baseline, rate)
    floor = max(one.max(), other.max()) - FLOOR_DB
    return float(np.abs(np.maximum(one, floor) - np.maximum(other, floor)).mean())


def onset_numbers(sound: np.ndarray, baseline: np.ndarray, rate: int) -> dict[str, float]:
    """Onsets of a sound against the baseline's, by the toy world's ears, which hear whatever sets in suddenly.

    Returns:
        ``onset_f1`` (1 when both have the same onsets, also none), and with at least one common onset
        ``onset_offset``, the mean |difference| in milliseconds.
    """
    one, other = listen(np.asarray(sound).T, rate), listen(np.asarray(baseline).T, rate)
    pairs = match_events(other, one, TOLERANCE)  # type: ignore[arg-type]
    total = len(one) + len(other)
    found = {"onset_f1": 2 * len(pairs) / total if total else 1.0}
    if pairs:
        found["onset_offset"] = float(np.mean([1e3 * abs(mine.time - its.time) for its, mine in pairs]))
    return found
