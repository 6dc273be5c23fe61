"""How far a number of runs is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds of a first step from which on the time left is told by it alone.
LONG = 20.0


class Forecast:
    """The share of a command's work that is done, and the time that the rest takes at the same speed.

    The unit is a denoising step; decoding and writing an output count as one until the first output has shown how long
    they take. The first step of all also reads the prompt and the inputs and warms up, so what it took longer than the
    others is not expected again.

    Args:
        outputs: how many are made.
        clock: seconds from anywhere.
    """

    def __init__(self, outputs: int, clock: Callable[[], float] = time.monotonic):
        self.outputs = outputs
        self.done = 0
        self.steps, self.total = 0, 1
        self._after = 1.0
        self._clock = clock
        self._begun = self._stepped = clock()
        self._first: float | None = None  # when the first step of all ended
        self._first_steps = 0  # how many it was told as
        self._once = 0.0  # seconds that come once

    def begin(self) -> None:
        """Loading is over, the first output begins."""
        self._begun = self._stepped = self._clock()

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the current output are made."""
        self.steps, self.total = done, total
        self._stepped = self._clock()
        if self._first is None:
            self._first, self._first_steps = self._stepped, done
        elif self.done == 0 and done > self._first_steps:
            usual = (self._stepped - self._first) / (done - self._first_steps)
            self._once = max(0.0, self._first - self._begun - self._first_steps * usual)

    def finished(self) -> None:
        """The current output is written."""
        now = self._clock()
        stepping = self._stepped - self._begun - self._once
        if self.done == 0 and stepping > 0 and self.steps:
            self._after = (now - self._stepped) * self.steps / stepping
        self.done, self.steps = self.done + 1, 0

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return (self.done + self.steps / (self.total + self._after)) / self.outputs

    def left(self) -> float | None:
        """Seconds until the last output is written; None as long as nobody can tell: before the second step, or before
        the first where that is so long that a rough answer, too high rather than too low, is better than none."""
        spent = self._clock() - self._begun
        alone = self.done == 0 and self.steps == self._first_steps < self.total
        if not self.share or (alone and spent < LONG):
            return None
        return (spent - self._once) * (1 - self.share) / self.share


def span(seconds: float) -> str:
    """A length of time as people say it: ``"40 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
