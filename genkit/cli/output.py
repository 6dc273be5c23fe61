"""What a command prints: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def one_line(text: object) -> str:
    """Any text as a single line."""
    return " ".join(str(text).split())


def warn(text: object) -> None:
    """One line of warning on standard error."""
    print(f"genkit: warning: {one_line(text)}", file=sys.stderr)


def note(text: object) -> None:
    """One line of information on standard error."""
    print(f"genkit: {one_line(text)}", file=sys.stderr)


def print_json(result: Any) -> None:
    """A result as JSON on standard output."""
    print(json.dumps(result, indent=2, sort_keys=False, default=str))


def print_table(columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A plain table on standard output; full width when it is no terminal, so that other programs can read it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
        table.expand = False
    console.print(table, soft_wrap=False)


def _escape(cell: object) -> str:
    from rich.markup import escape

    return escape("-" if cell is None or cell == "" else str(cell))


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of Diffusers and Transformers: the command line prints its own, once."""
    import warnings

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


class RunProgress:
    """Two bars on standard error: outputs overall and steps of the current one. Plain lines when it is no terminal."""

    def __init__(self, outputs: int):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(file=sys.stderr)
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=False, disable=not self._live,
        )  # fmt: skip
        self._outputs = outputs
        self._done = 0
        self._overall = self._bars.add_task("overall", total=outputs) if outputs > 1 else None
        self._steps = self._bars.add_task("loading", total=None)

    @contextmanager
    def shown(self) -> Iterator[RunProgress]:
        """Show the bars for the time of the ``with``."""
        with self._bars:
            yield self

    def __call__(self, phase: str, done: int, total: int) -> None:
        """The callback that :class:`genkit.pipelines.session.Session` calls."""
        if phase == "decode":
            self._bars.update(self._steps, description="decoding")
            return
        self._bars.update(self._steps, description="steps", completed=done, total=total)
        if not self._live and (done in (1, total) or done % max(1, total // 4) == 0):
            note(f"output {self._done + 1}/{self._outputs}: step {done}/{total}")

    def finished(self) -> None:
        """One output is written."""
        self._done += 1
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._done)
        if self._done < self._outputs:
            self._bars.reset(self._steps, description="steps", total=None)
        else:
            self._bars.update(self._steps, description="done")
