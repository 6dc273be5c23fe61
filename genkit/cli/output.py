"""What a command prints: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
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
