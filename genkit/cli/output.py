"""What a command prints: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from genkit.errors import GenkitError, escaped, shortened

#: Characters of a message.
LINE = 3000


class OutputError(GenkitError):
    """Standard output takes nothing: the disk is full, or the program that reads it has ended."""


class _Document:
    """What a command with ``--json`` says so far: standard output takes one JSON document, whatever happens."""

    def __init__(self) -> None:
        self.open = False
        self.found: dict[str, Any] = {}


_document = _Document()


@contextmanager
def one_document(asked: bool) -> Iterator[None]:
    """While open, results of :func:`print_json` are kept and text for standard output goes to standard error.

    :func:`close_document` prints what is kept; without ``--json`` (``asked`` false) nothing changes.
    """
    before = _document.open, _document.found
    _document.open, _document.found = asked, {}
    try:
        yield
    finally:
        _document.open, _document.found = before


def close_document(**error: Any) -> None:
    """Print the kept result; of a command that failed beside its error, in the same document.

    Raises:
        OutputError: standard output takes nothing.
    """
    if _document.open and (error or _document.found):
        found = {**error, **_document.found}
        _document.open, _document.found = False, {}
        print_json(found)


def one_line(text: object) -> str:
    """Any text as a single line that a terminal only shows: bounded, its control characters written out."""
    return shortened(escaped(" ".join(str(text).split())), LINE)


def any_encoding() -> None:
    """Characters that standard output and error cannot encode are written out instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: object = "") -> None:
    """A result on standard output, its control characters written out; with ``--json`` on standard error.

    Raises:
        OutputError: standard output takes nothing.
    """
    if _document.open:
        complain(escaped(str(text)))
        return
    with written():
        print(escaped(str(text)))


@contextmanager
def written() -> Iterator[None]:
    """Turn what goes wrong with standard output into :class:`OutputError`."""
    if sys.stdout is None:
        raise OutputError("standard output is closed; nothing was printed")
    try:
        yield
    except BrokenPipeError as error:
        raise OutputError("the program that reads standard output has ended") from error
    except (OSError, ValueError) as error:  # ValueError: closed meanwhile
        said = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"standard output could not be written: {said}") from error


def flush() -> None:
    """Write what standard output still holds, as :func:`say` does."""
    if sys.stdout is not None:
        with written():
            sys.stdout.flush()


def abandon() -> None:
    """Nothing more goes to standard output: what it holds is dropped, so that leaving cannot fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        empty = os.open(os.devnull, os.O_WRONLY)
        os.dup2(empty, sys.stdout.fileno())
        os.close(empty)


def warn(text: object) -> None:
    """One line of warning on standard error."""
    complain(f"genkit: warning: {one_line(text)}")


def note(text: object) -> None:
    """One line of information on standard error."""
    complain(f"genkit: {one_line(text)}")


def complain(line: str) -> None:
    """A line on standard error; where that takes nothing, there is nobody to tell."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr)


def print_json(result: dict[str, Any]) -> None:
    """A result as JSON on standard output; what a command gives in several calls becomes one document."""
    if _document.open:
        _document.found |= result
        return
    with written():
        print(json.dumps(result, indent=2, sort_keys=False, default=str))


def print_table(columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A plain table on standard output; full width when it is no terminal, so that other programs can read it.
    With ``--json`` it goes to standard error.

    On a terminal nothing is cut off: cells wrap, and columns whose words do not fit beside the others follow in a
    further table that repeats the first column.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    cells = [[_shown(cell) for cell in row] for row in rows]
    console = Output(stderr=_document.open)
    if not console.is_terminal:
        console.width = 10_000
    for group in _side_by_side(columns, cells, console.width):
        heads = [Column(columns[index], width=width, overflow="fold") for index, width in group.items()]
        table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            table.add_row(*(escape(row[index]) for index in group))
        with written():
            console.print(table, soft_wrap=False)


def _side_by_side(columns: list[str], cells: list[list[str]], width: int) -> list[dict[int, int]]:
    """The columns of each table of at most ``width`` characters, with the width of each: always the first column,
    whole, and at least one other, no narrower than its longest word."""
    texts = [[column, *(row[index] for row in cells)] for index, column in enumerate(columns)]
    whole = [max(map(len, text)) for text in texts]
    words = [max((len(word) for text in column for word in text.split()), default=1) for column in texts]
    groups = [{0: whole[0]}]
    for index in range(1, len(columns)):
        beside = 3 * len(groups[-1]) + 2  # spaces between the columns and at the edges
        if len(groups[-1]) > 1 and sum(groups[-1].values()) + words[index] + beside > width:
            groups.append({0: whole[0]})
        groups[-1][index] = words[index]
    for group in groups:
        room = min(width - 3 * len(group) + 1, sum(whole[index] for index in group))
        while sum(group.values()) < room:  # to the column that is shortest of its needs
            group[max(group, key=lambda index: whole[index] / max(group[index], 1))] += 1
    return groups


def _shown(cell: object) -> str:
    return "-" if cell is None or cell == "" else escaped(str(cell))


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of Diffusers and Transformers: the command line prints its own, once."""
    import warnings

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
