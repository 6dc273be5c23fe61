"""How far a command is and how long it will take: bars on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genkit.cli.output import note


class Forecast:
    """The share of a command's work that is done, and the time that the rest takes at the same speed.

    The unit is a denoising step; decoding and writing an output count as one until the first output has shown how long
    they take.

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

    def begin(self) -> None:
        """Loading is over, the first output begins."""
        self._begun = self._stepped = self._clock()

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the current output are made."""
        self.steps, self.total = done, total
        self._stepped = self._clock()

    def finished(self) -> None:
        """The current output is written."""
        now = self._clock()
        stepping = self._stepped - self._begun
        if self.done == 0 and stepping > 0 and self.steps:
            self._after = (now - self._stepped) * self.steps / stepping
        self.done, self.steps = self.done + 1, 0

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return (self.done + self.steps / (self.total + self._after)) / self.outputs

    def left(self) -> float | None:
        """Seconds until the last output is written; None before the first step is made."""
        if not self.share:
            return None
        return (self._clock() - self._begun) * (1 - self.share) / self.share


class RunProgress:
    """All outputs as one bar with the time left, and the steps of the current one; what a session calls back."""

    def __init__(self, outputs: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(file=sys.stderr)
        self._live = console.is_terminal
        self._forecast = Forecast(outputs)
        self._bars = Progress(
            TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn(),
            console=console, transient=False, disable=not self._live,
        )  # fmt: skip
        self._overall = self._bars.add_task("overall", total=1.0, state="")
        self._steps = self._bars.add_task("loading", total=None, state="")

    @contextmanager
    def shown(self) -> Iterator[RunProgress]:
        """Show the bars for the time of the ``with``."""
        with self._bars:
            yield self

    def begin(self) -> None:
        """The model is loaded."""
        self._forecast.begin()
        self._bars.update(self._steps, description="steps")

    def __call__(self, phase: str, done: int, total: int) -> None:
        """The callback that :class:`genkit.pipelines.session.Session` calls."""
        if phase == "decode":
            self._bars.update(self._steps, description="decoding")
            return
        self._forecast.step(done, total)
        self._bars.update(self._steps, description="steps", completed=done, total=total, state=f"{done}/{total}")
        self._show()
        if not self._live and (done in (1, total) or done % max(1, total // 4) == 0):
            left = self._forecast.left()
            more = "" if left is None else f", about {span(left)} left"
            note(f"output {self._forecast.done + 1}/{self._forecast.outputs}: step {done}/{total}{more}")

    def finished(self) -> None:
        """One output is written."""
        self._forecast.finished()
        self._show()
        last = self._forecast.done == self._forecast.outputs
        self._bars.update(self._steps, description="done" if last else "steps")

    def _show(self) -> None:
        forecast, left = self._forecast, self._forecast.left()
        state = f"{forecast.done}/{forecast.outputs} done"
        state += "" if left is None or forecast.share >= 1 else f", about {span(left)} left"
        self._bars.update(self._overall, completed=forecast.share, state=state)


def span(seconds: float) -> str:
    """A length of time as people say it: ``"40 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
