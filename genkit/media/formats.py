"""Which kind of output a path means, and whether it may be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from genkit.errors import ArtifactError, UsageError, explain, shown
from genkit.media.atomic import check_writable
from genkit.media.limits import FRAMES
from genkit.media.owned import wrote_picture, wrote_record
from genkit.reading.files import place, reason, user_path

SUFFIXES = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".png": "png"}
#: A place for a number; "100%done.mp4" has none.
PATTERN = re.compile(r"%0?\d*d(?![A-Za-z])")
_WIDEST = 20
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
    marks = _marks(name)
    if len(marks) > 1 or (marks and not suffix):
        raise UsageError(explain("output pattern", str(path), "one %d or %04d in the name of a file with a suffix"))
    if marks and suffix == ".png":
        return "pattern"
    if not suffix:
        return "folder"
    if suffix not in SUFFIXES:
        raise UsageError(explain("output", str(path), ALLOWED))
    return SUFFIXES[suffix]


def _marks(name: str) -> list[str]:
    """The places for a number in a name; UsageError for one that would make a huge name."""
    marks = PATTERN.findall(name)
    for mark in marks:
        if len(mark) > 5 or int(mark[1:-1] or 0) > _WIDEST:
            raise UsageError(explain("output pattern", name, f"%d or a width up to {_WIDEST}, as in %04d"))
    return marks


def sidecar_of(path: str | Path) -> Path:
    """The settings file beside an output: ``clip.mp4`` -> ``clip.mp4.json``, folder ``shots`` -> ``shots.json``,
    numbered frames ``shot-%04d.png`` -> ``shot-frames.png.json``."""
    path = Path(path)
    return path.with_name(PATTERN.sub("frames", path.name) + ".json")


def numbered(path: str | Path, index: int, count: int, *, still: bool = False) -> Path:
    """The name of output ``index`` of ``count``.

    A number in the name is the output's: ``clip-%03d.mp4`` -> ``clip-003.mp4``. Without one, ``clip.mp4`` becomes
    ``clip-0003.mp4`` when there are several outputs and stays as it is when there is only one. In ``shot-%04d.png``
    the number is the frame's, unless the output is a ``still`` image; several clips get their own number before it.
    """
    path = Path(path)
    if _marks(path.name) and (still or format_of(path) != "pattern"):
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
    """What stands where an output at ``path`` would be written (the sidecar included)."""
    path = Path(path)
    found = _numbered(path) if format_of(path) == "pattern" else [path] if path.exists() or path.is_symlink() else []
    beside = sidecar_of(path)
    return sorted(found) + ([beside] if beside.exists() or beside.is_symlink() else [])


def _numbered(path: Path) -> list[Path]:
    """The files whose names the pattern makes; ``007.png`` is none of ``%d.png``."""
    before, after = PATTERN.split(path.name)
    number = re.compile(re.escape(before) + r" *([0-9]{1,20})" + re.escape(after))
    entries = path.parent.iterdir() if path.parent.is_dir() else ()
    matches = ((entry, number.fullmatch(entry.name)) for entry in entries)
    return [entry for entry, found in matches if found and _fill(path, int(found[1])).name == entry.name]


def stale(path: Path, written: Iterable[Path]) -> list[Path]:
    """What an earlier output at ``path`` left beside the files just written: frames of a longer clip, its settings.
    Only what genkit wrote itself."""
    left = set(existing(path)) - set(written)
    return sorted(each for each in left if (wrote_record if each == sidecar_of(path) else wrote_picture)(each))


def check_name(path: str | Path) -> None:
    """Refuse an output that no file can be named like, or whose settings could not lie beside it.

    Raises:
        UsageError: ``-``, an unknown suffix, or no path at all. ArtifactError: a name that is too long.
    """
    path = Path(path)
    format_of(path)
    if path.name == "-":
        raise UsageError(explain("output", str(path), ALLOWED, "nothing is written to the standard output"))
    for name in (path, sidecar_of(path)):
        user_path(name, "output")


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
    check_name(path)
    try:
        found = existing(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {place(path)}: {reason(error)}; choose another --output") from error
    special = next((name for name in found if name.exists() and not (name.is_file() or name.is_dir())), None)
    if special is not None:
        raise UsageError(f"{place(special)} is a device or a pipe, which is never replaced; choose another --output")
    if found and not force:
        raise UsageError(f"{place(found[0])} exists; use --force to replace it, or choose another --output")
    if kind == "folder" and (path.exists() or path.is_symlink()):
        _check_own_folder(path)
    elif kind != "folder" and path.is_dir():
        raise UsageError(f"{place(path)} is a folder; choose a file name ending in {', '.join(SUFFIXES)}")
    _check_own(path, kind, found)
    check_writable(path.absolute().parent)


def _check_own(path: Path, kind: str, found: list[Path]) -> None:
    """Refuse to replace what --force was not told by name: another program's frames and .json files."""
    beside = sidecar_of(path)
    if beside in found and not wrote_record(beside):
        raise _foreign(beside)
    for frame in found if kind == "pattern" else ():
        # Frames of a clip are numbered from 0; a date in a name is never reached.
        reached = frame != beside and int(re.search(r"[0-9]+", _middle(path, frame))[0]) < FRAMES
        if reached and not wrote_picture(frame):
            raise _foreign(frame)


def _middle(path: Path, frame: Path) -> str:
    before, after = PATTERN.split(path.name)
    return frame.name[len(before) : len(frame.name) - len(after)]


def _foreign(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{place(path)} was not written by genkit; --force will not replace it, choose another --output"
    )


def _check_own_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(
            f"{place(path)} is a file without a suffix; "
            f"choose a folder name or a file name ending in {', '.join(SUFFIXES)}"
        )
    if path.is_symlink():
        raise UsageError(f"{place(path)} is a link to a folder; give the folder itself")
    for entry in path.iterdir():
        if not re.fullmatch(r"frame-\d{4,}\.png", entry.name) or entry.is_symlink() or not wrote_picture(entry):
            raise ArtifactError(
                f"{place(path)} holds {shown(entry.name)}, which genkit did not write; "
                "--force will not delete it, choose another --output"
            )


def dump(record: dict) -> str:
    """Settings as one line of pure-ASCII JSON: every container accepts it, and equal settings give equal bytes."""
    return json.dumps(record, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
