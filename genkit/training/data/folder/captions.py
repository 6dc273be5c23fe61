"""Captions of a folder's files: a ``.txt`` beside each, one ``metadata.jsonl`` or ``metadata.csv``, or one for all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from genkit.errors import UsageError
from genkit.reading import parse_json, read_text
from genkit.reading.files import place

TABLES = ("metadata.jsonl", "metadata.csv")
#: Columns of a table that hold the caption, as Hugging Face's datasets and other trainers name them.
TEXT_COLUMNS = ("text", "caption", "prompt")
_NAME = "file_name"
# Bytes: no encoder reads a longer caption, and a million rows fit into the table.
_MOST_CAPTION, _MOST_TABLE = 1 << 16, 1 << 28


def read_table(folder: Path) -> dict[str, str] | None:
    """File name (relative, with slashes) -> caption, of the folder's table; None where it has none.

    Raises:
        UsageError: two tables, or rows without a name or caption, with a name outside the folder, or twice.
    """
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise UsageError(f"{place(folder)} has both {TABLES[0]} and {TABLES[1]}; allowed: one of them")
    captions: dict[str, str] = {}
    for where, row in (_json_rows if found[0].suffix == ".jsonl" else _csv_rows)(found[0]):
        name = _name(row.get(_NAME), where)
        column = next((column for column in TEXT_COLUMNS if row.get(column) is not None), None)
        if column is None:
            raise UsageError(f"{where} has no caption; allowed: a column named {' or '.join(TEXT_COLUMNS)}")
        if not isinstance(row[column], str):
            raise UsageError(f"{where}: {column} is {place(repr(row[column]))}, allowed: a text")
        if name in captions:
            raise UsageError(f"{where} names {place(name)} a second time")
        captions[name] = tidy(row[column])
    return captions


def read_sidecar(path: Path, extension: str = ".txt") -> str | None:
    """The caption in the text file beside a media file; None where there is none."""
    beside = path.with_suffix(extension)
    return tidy(read_text(beside, _MOST_CAPTION, "the caption")) if beside.is_file() else None


def tidy(text: str) -> str:
    """A caption in one line."""
    return " ".join(text.split())


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where} has no file; allowed: a column named {_NAME} with a name in this folder")
    name = PurePosixPath(value.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise UsageError(f"{where} names {place(value)}, which is outside of the folder")
    return str(name)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, _MOST_TABLE, "the table of captions").splitlines(), 1):
        if line.strip():
            where = f"{place(path)}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise UsageError(f'{where} is no object such as {{"file_name": "a.png", "text": "a red circle"}}')
            yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path, _MOST_TABLE, "the table of captions")), strict=True)
    try:
        for row in reader:
            yield f"{place(path)}, line {reader.line_num}", {key: row[key] for key in row if key is not None}
    except csv.Error as error:
        raise UsageError(f"{place(path)}, line {reader.line_num} is no row of a table: {error}") from error
