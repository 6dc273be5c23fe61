"""The files of a folder: what is in it, what each is called, and what of each is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genkit.errors import UsageError
from genkit.reading.files import place
from genkit.training.data.folder.captions import TABLES, read_sidecar, read_table

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """One file and its caption.

    Args:
        path: of a picture or video.
        caption: in one line; may be empty.
        dropout: share of the times it comes with the empty caption.
    """

    path: Path
    caption: str
    dropout: float = 0.0

    @property
    def video(self) -> bool:
        """Whether it is a video by its name."""
        return self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Args:
        path: the folder.
        items: media with captions, sorted by name.
        unused: names of files that are neither media nor captions, and of captions without media.
    """

    path: Path
    items: tuple[Item, ...]
    unused: tuple[str, ...]


def read_folder(path: str | Path, caption: str | None = None, extension: str = ".txt") -> Folder:
    """Find a folder's pictures and videos, also in folders below, with their captions.

    Args:
        path: the folder.
        caption: for every file that has no own one; None: each must have one.
        extension: of the text files beside media.

    Raises:
        UsageError: no folder, nothing in it, files without captions or with two, a table that names what is not there.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"data: {place(folder)} is no folder")
    table = read_table(folder)
    files = sorted(found for found in folder.rglob("*") if found.is_file() and not _hidden(found, folder))
    media = [found for found in files if found.suffix.lower() in PICTURES + VIDEOS]
    if not media:
        endings = ", ".join(PICTURES + VIDEOS)
        raise UsageError(f"data: {place(folder)} holds no picture and no video; allowed: files that end in {endings}")
    names = {found.relative_to(folder).as_posix(): found for found in media}
    _refuse(folder, "names files that are not there", [name for name in table or {} if name not in names])
    captions = {name: _caption(found, (table or {}).get(name), extension) for name, found in names.items()}
    if caption is None:
        text = f"has files without a caption (a {extension} beside each, {' or '.join(TABLES)}, or one caption for all)"
        _refuse(folder, text, [name for name, own in captions.items() if own is None])
    said = {name: caption if own is None else own for name, own in captions.items()}
    items = tuple(Item(found, said[name] or "") for name, found in names.items())
    used = {*media, *(found.with_suffix(extension) for found in media), *(folder / name for name in TABLES)}
    return Folder(folder, items, tuple(found.relative_to(folder).as_posix() for found in files if found not in used))


def _caption(path: Path, listed: str | None, extension: str) -> str | None:
    beside = read_sidecar(path, extension)
    if beside is not None and listed is not None and beside != listed:
        raise UsageError(f"{place(path)} has two captions: one in the table, another in the {extension} beside it")
    return listed if beside is None else beside


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _refuse(folder: Path, text: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join(place(name) for name in names[:_SHOWN])
        raise UsageError(f"data: {place(folder)} {text}: {shown}{more}")
