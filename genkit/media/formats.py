"""Which kind of output a path means, and whether it may be written."""

from __future__ import annotations

import json
import re
from pathlib import Path

from genkit.errors import ArtifactError, UsageError, explain
from genkit.media.atomic import check_writable, reason

SUFFIXES = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".png": "png"}
PATTERN = re.compile(r"%0?\d*d")
FRAME_NAME = "frame-%04d.png"
ALLOWED = "*.mp4, *.gif, *.webp, *.png (one frame), a pattern such as shot-%04d.png, or a folder name without a suffix"


def format_of(path: str | Path) -> str:
    """``"mp4"``, ``"gif"``, ``"webp"``, ``"png"`` (one image), ``"pattern"`` (numbered ``.png`` frames) or ``"folder"``
    (images in a new folder).

    Raises:
        UsageError: a suffix that genkit does not write.
    """
    name = Path(path).name
    if name in ("", ".", ".."):
        raise UsageError(explain("output", str(path), ALLOWED))
    suffix = Path(path).suffix.lower()
    marks = PATTERN.findall(name)
    if len(marks) > 1 or (marks and not suffix):
        raise UsageError(explain("output pattern", str(path), "one %d or %04d in the name of a file with a suffix"))
    if marks and suffix == ".png":
        return "pattern"
    if not suffix:
        return "folder"
    if suffix not in SUFFIXES:
        raise UsageError(explain("output", str(path), ALLOWED))
    return SUFFIXES[suffix]


def sidecar_of(path: str | Path) -> Path:
    """The settings file beside an output: ``clip.mp4`` -> ``clip.mp4.json``, folder ``shots`` -> ``shots.json``."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def numbered(path: str | Path, index: int, count: int, *, still: bool = False) -> Path:
    """The name of output ``index`` of ``count``.

    A number in the name is the output's: ``clip-%03d.mp4`` -> ``clip-003.mp4``. Without one, ``clip.mp4`` becomes
    ``clip-0003.mp4`` when there are several outputs and stays as it is when there is only one. In ``shot-%04d.png``
    the number is the frame's, unless the output is a ``still`` image; several clips get their own number before it.
    """
    path = Path(path)
    if PATTERN.search(path.name) and (still or format_of(path) != "pattern"):
        return _fill(path, index)
    if count == 1:
        return path
    if format_of(path) == "pattern":
        return path.with_name(PATTERN.sub(lambda found: f"{index:04d}-{found.group()}", path.name))
    return path.with_name(f"{path.stem}-{index:04d}{path.suffix}")


def frame_paths(path: Path, count: int) -> list[Path]:
    """The files of a pattern, numbered from 0."""
    return [_fill(path, index) for index in range(count)]


def _fill(path: Path, index: int) -> Path:
    return path.with_name(PATTERN.sub(lambda found: found.group() % index, path.name))


def existing(path: str | Path) -> list[Path]:
    """What an output at ``path`` would replace (the sidecar included)."""
    path = Path(path)
    if format_of(path) == "pattern":
        before, after = PATTERN.split(path.name)
        number = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        found = (
            [entry for entry in path.parent.iterdir() if number.fullmatch(entry.name)] if path.parent.is_dir() else []
        )
    else:
        found = [path] if path.exists() or path.is_symlink() else []
    beside = sidecar_of(path)
    return sorted(found) + ([beside] if beside.exists() else [])


def check_output(path: str | Path, *, force: bool = False) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Args:
        path: the output as the user gave it.
        force: whether existing outputs may be replaced. A folder is replaced only when genkit made it.

    Raises:
        UsageError: unknown suffix, or something exists and ``force`` is off.
        ArtifactError: the folder cannot be written, or ``force`` would delete a folder that genkit did not make.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        found = existing(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path.name[:60]}: {reason(error)}; choose another --output") from error
    if found and not force:
        raise UsageError(f"{found[0]} exists; use --force to replace it, or choose another --output")
    if kind == "folder" and path.exists():
        _check_own_folder(path)
    elif kind != "folder" and path.is_dir():
        raise UsageError(f"{path} is a folder; choose a file name ending in {', '.join(SUFFIXES)}")
    check_writable(path.absolute().parent)


def _check_own_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(
            f"{path} is a file without a suffix; choose a folder name or a file name ending in {', '.join(SUFFIXES)}"
        )
    foreign = [entry.name for entry in path.iterdir() if not re.fullmatch(r"frame-\d{4,}\.png", entry.name)]
    if foreign:
        raise ArtifactError(
            f"{path} holds {foreign[0]!r}, which genkit did not write; "
            "--force will not delete it, choose another --output"
        )


def dump(record: dict) -> str:
    """Settings as one line of pure-ASCII JSON: every container accepts it, and equal settings give equal bytes."""
    return json.dumps(record, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
