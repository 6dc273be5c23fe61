"""Files of a folder and of all folders below, with links followed once and limits on what is followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from genkit.errors import ArtifactError, UsageError
from genkit.reading.files import place, reason

#: Folders inside each other, and files in all.
_DEEP, _MOST = 32, 1_000_000


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those below, sorted by name; hidden ones are left out. Links to folders are
    followed, each folder is entered once.

    Raises:
        ArtifactError: a folder that may not be read. UsageError: more files than are looked at.
    """
    found: list[Path] = []
    for path in _walk(folder, set(), 0):
        found.append(path)
        if len(found) > _MOST:
            raise UsageError(f"data: {place(folder)} has more than {_MOST} files; allowed: folders with fewer")
    return sorted(found)


def _walk(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    if depth > _DEEP:
        raise UsageError(f"data: {place(folder)} lies more than {_DEEP} folders deep; allowed: fewer")
    try:
        mark = os.stat(folder)
        if (mark.st_dev, mark.st_ino) in seen:
            return
        seen.add((mark.st_dev, mark.st_ino))
        with os.scandir(folder) as entries:
            names = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise ArtifactError(f"cannot read the folder {place(folder)}: {reason(error)}") from error
    for name, is_folder in names:
        if is_folder:
            yield from _walk(folder / name, seen, depth + 1)
        else:
            yield folder / name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle; whoever opens it tells
        return False
