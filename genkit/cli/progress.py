"""How far a command is and how long it will take: bars on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from genkit.cli.output import note
from genkit.pipelines.forecast import Forecast, span


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
