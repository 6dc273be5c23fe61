"""Captions: a ``.txt`` beside each file, ``metadata.jsonl`` or ``metadata.csv`` in its folder, or a list of files."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genkit.errors import UsageError, shown
from genkit.reading import parse_json, read_text
from genkit.reading.files import place

TABLES = ("metadata.jsonl", "metadata.csv")
#: Endings of a table, also of one that is no folder's but lists files anywhere.
LISTS = (".jsonl", ".csv")
#: Columns that hold the caption and, in lists, the file, as Hugging Face's datasets and other trainers name them.
TEXT_COLUMNS = ("text", "caption", "prompt")
FILE_COLUMNS = ("file_name", "path", "image_path", "video_path", "media_path", "image", "video", "media", "file")
_NAME = "file_name"
#: Columns of a list with what goes with a sample -> its role.
_BESIDE = {
    "mask_path": "masks", "mask": "masks", "control_path": "control", "control_image": "control",
    "first_frame": "first_frame", "last_frame": "last_frame",
}  # fmt: skip
# Bytes: no encoder reads a longer caption, and a million rows fit into the table.
_MOST_CAPTION, _MOST_TABLE = 1 << 16, 1 << 28


@dataclass(frozen=True)
class Row:
    """A row of a list.

    Args:
        path: of the picture or video.
        caption: in one line; None where the row has none.
        beside: role -> file that goes with it, "masks" or what is told to the model.
    """

    path: Path
    caption: str | None
    beside: tuple[tuple[str, Path], ...]


def read_tables(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """File name (relative to the folder, with slashes) -> caption, of the tables among a folder's files; each names
    files of the folder it lies in and of those below.

    Raises:
        UsageError: two tables in one folder, or rows without a name or caption, with a name outside the folder, or
            twice.
    """
    found = [path for path in files if path.name in TABLES]
    captions: dict[str, str] = {}
    for table in found:
        if table.name == TABLES[0] and table.with_name(TABLES[1]) in found:
            raise UsageError(f"{place(table.parent)} has both {TABLES[0]} and {TABLES[1]}; allowed: one of them")
        for where, row in _rows(table):
            name = (table.parent.relative_to(folder) / _name(row, where)).as_posix()
            caption = _caption(row, where)
            if caption is None:
                raise UsageError(f"{where} has no caption; allowed: a column named {' or '.join(TEXT_COLUMNS)}")
            if name in captions:
                raise UsageError(f"{where} names {place(name)} a second time")
            captions[name] = caption
    return captions


def read_list(path: Path) -> list[Row]:
    """The rows of a list of files, ``.jsonl`` or ``.csv``; relative paths begin at the list's folder.

    Raises:
        ArtifactError: the list cannot be read. UsageError: a row without a file, or one file twice.
    """
    found: dict[Path, Row] = {}
    for where, row in _rows(path):
        column = next((column for column in FILE_COLUMNS if row.get(column)), None)
        if column is None:
            raise UsageError(f"{where} has no file{_columns(row)}; allowed: a column named {' or '.join(FILE_COLUMNS)}")
        media = _beside(path, row[column], where, column)
        if media in found:
            raise UsageError(f"{where} names {place(media)} a second time")
        beside = {role: _beside(path, row[name], where, name) for name, role in _BESIDE.items() if row.get(name)}
        found[media] = Row(media, _caption(row, where), tuple(beside.items()))
    if not found:
        raise UsageError(f"data: {place(path)} lists no file")
    return [found[media] for media in sorted(found)]


def _beside(path: Path, value: Any, where: str, column: str) -> Path:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {column} is {shown(value)}, allowed: a path")
    return path.parent / Path(value.replace("\\", "/")).expanduser()


def _caption(row: dict[str, Any], where: str) -> str | None:
    column = next((column for column in TEXT_COLUMNS if row.get(column) is not None), None)
    if column is None:
        return None
    if not isinstance(row[column], str):
        raise UsageError(f"{where}: {column} is {place(repr(row[column]))}, allowed: a text")
    return tidy(row[column], where)


def _columns(row: dict[str, Any]) -> str:
    return f" (its columns: {', '.join(place(str(name)) for name in list(row)[:8])})" if row else ""


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _json_rows(path) if path.suffix.lower() == LISTS[0] else _csv_rows(path)


def read_sidecar(path: Path, extension: str = ".txt") -> str | None:
    """The caption in the text file beside a media file; None where there is none."""
    beside = path.with_suffix(extension)
    return tidy(read_text(beside, _MOST_CAPTION, "the caption"), place(beside)) if beside.is_file() else None


def tidy(text: str, where: str) -> str:
    """A caption in one line; ``where`` it comes from.

    Raises:
        UsageError: a control character or half a character in it: no tokenizer was made for these, and a terminal that
            shows the caption would obey them.
    """
    line = " ".join(text.split())
    for character in line:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise UsageError(
                f"{where}: the caption holds the control character U+{ord(character):04X} in {shown(line)}; remove it"
            )
    return line


def _name(row: dict[str, Any], where: str) -> str:
    value = row.get(_NAME)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(
            f"{where} has no file{_columns(row)}; allowed: a column named {_NAME} with a name in this folder"
        )
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
