"""The files of a folder: what is in it, what each is called, and what goes with each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genkit.errors import GenkitError, UsageError, counted
from genkit.reading.files import place
from genkit.training.data.folder.beside import MASK_ENDING, Beside, folder_of
from genkit.training.data.folder.captions import LISTS, TABLES, read_list, read_sidecar, read_tables
from genkit.training.data.folder.told import listed
from genkit.training.data.folder.walk import files_below

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MASKS = "masks"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Item:
    """One file and its caption.

    Args:
        path: of a picture or video.
        caption: in one line; may be empty.
        dropout: share of the times it comes with the empty caption.
        mask: of the loss.
        unmasked: weight of the loss where the mask is black.
        given: role -> picture or clip that is told to the model.
    """

    path: Path
    caption: str
    dropout: float = 0.0
    mask: Path | None = None
    unmasked: float = 0.0
    given: tuple[tuple[str, Path], ...] = ()

    @property
    def video(self) -> bool:
        """Whether it is a video by its name."""
        return self.path.suffix.lower() in VIDEOS

    @property
    def files(self) -> tuple[Path, ...]:
        """The file and those that go with it."""
        return (self.path, *((self.mask,) if self.mask else ()), *(path for _, path in self.given))


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Args:
        path: the folder.
        items: media with captions, sorted by name.
        unused: names of files that are neither media nor captions, and of captions without media.
        told: what a user should know about it, one line each.
    """

    path: Path
    items: tuple[Item, ...]
    unused: tuple[str, ...]
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is looked for in a folder.

    Args:
        caption: for every file that has no own one; None: each must have one.
        extension: of the text files beside media.
        masks: folder of masks with the names of the media. ``name.mask.png`` beside a file is its mask in any case.
        given: role -> folder of pictures or clips with the names of the media.
    """

    caption: str | None = None
    extension: str = ".txt"
    masks: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)


def read_folder(path: str | Path, wanted: Wanted | None = None) -> Folder:
    """Find a folder's pictures and videos, also in folders below, with their captions; or those that a list names.

    Args:
        path: the folder, or a ``.jsonl`` or ``.csv`` file that lists media and captions.
        wanted: what else is looked for.

    Raises:
        UsageError: no folder, nothing in it, files without captions or with two, a table that names what is not there,
            files without what must be given with them.
    """
    folder, wanted = Path(path).expanduser(), wanted or Wanted()
    if folder.suffix.lower() in LISTS and not folder.is_dir():
        return _listed(folder, wanted)
    if not folder.is_dir():
        raise UsageError(f"data: {place(folder)} is no folder")
    every = files_below(folder)
    table = read_tables(folder, every)
    rooms = _rooms(folder, wanted)
    inside = [os.path.realpath(room.folder) for room in rooms.values()]
    files = [found for found in every if not _lies_in(found, inside, folder)]
    shown = [found for found in files if found.suffix.lower() in PICTURES + VIDEOS]
    own_masks = {found.with_suffix("").with_suffix(""): found for found in shown if _is_mask(found)}
    media = [found for found in shown if not _is_mask(found)]
    if not media:
        endings = ", ".join(PICTURES + VIDEOS)
        raise UsageError(f"data: {place(folder)} holds no picture and no video; allowed: files that end in {endings}")
    names = {found.relative_to(folder).as_posix(): found for found in media}
    _refuse(folder, "names files that are not there", [name for name in table if name not in names])
    said = _captions(folder, names, table, wanted)
    items = []
    for name, found in names.items():
        mask = own_masks.get(found.with_suffix(""))
        beside = {role: room.of(found, folder) for role, room in rooms.items()}
        items.append(_item(found, said[name], {**beside, **({MASKS: mask} if mask else {})}))
    _need(folder, items, wanted)
    used = {*media, *(item.mask for item in items), *(found for found in every if found.name in TABLES)}
    used |= {found.with_suffix(wanted.extension) for found in media}
    unused = tuple(found.relative_to(folder).as_posix() for found in files if found not in used)
    told = (*_shared(media, wanted.extension), *_left(items, rooms))
    return Folder(folder, tuple(items), unused, told)


def _listed(path: Path, wanted: Wanted) -> Folder:
    """The files that a list names."""
    rows = read_list(path)
    _refuse(path, "names files that are not there", [str(row.path) for row in rows if not row.path.is_file()])
    odd = [str(row.path) for row in rows if row.path.suffix.lower() not in PICTURES + VIDEOS]
    _refuse(path, "names files that are no pictures and no videos", odd)
    names = {str(row.path): row.path for row in rows}
    said = _captions(path, names, {str(row.path): row.caption for row in rows if row.caption is not None}, wanted)
    rooms = _rooms(path.parent, wanted)
    items = []
    for row in rows:
        inside = row.path.is_relative_to(path.parent)
        beside = {role: room.of(row.path, path.parent) for role, room in rooms.items()} if inside else {}
        items.append(_item(row.path, said[str(row.path)], {**beside, **dict(row.beside)}))
    _need(path, items, wanted)
    return Folder(path, tuple(items), (), _left(items, rooms))


def _rooms(folder: Path, wanted: Wanted) -> dict[str, Beside]:
    named = {MASKS: wanted.masks, **wanted.given}
    return {
        role: Beside(role, folder_of(setting, folder), PICTURES + VIDEOS) for role, setting in named.items() if setting
    }


def _item(path: Path, caption: str, beside: Mapping[str, Path | None]) -> Item:
    given = tuple((role, each) for role, each in beside.items() if role != MASKS and each is not None)
    return Item(path, caption, mask=beside.get(MASKS), given=given)


def _need(folder: Path, items: Sequence[Item], wanted: Wanted) -> None:
    """Refuse files without a picture that all must have."""
    for role in wanted.given:
        lacking = [item.path.name for item in items if role not in dict(item.given)]
        _refuse(folder, f"has files without a picture of their name in the folder of {role}", lacking)


def _captions(folder: Path, names: Mapping[str, Path], table: Mapping[str, str], wanted: Wanted) -> dict[str, str]:
    """Caption of every file; all that cannot be read are told at once."""
    found: dict[str, str | None] = {}
    wrong: list[str] = []
    for name, path in names.items():
        try:
            own = _caption(path, table.get(name), wanted.extension)
            found[name] = wanted.caption if own is None else own
        except GenkitError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError(f"data: {counted(len(wrong), 'caption')} cannot be used: {listed(wrong, '; ')}")
    ways = f"a {wanted.extension} beside each, {' or '.join(TABLES)}, or one caption for all"
    text = f"has files without a caption ({ways})"
    _refuse(folder, text, [name for name, said in found.items() if said is None])
    return {name: said or "" for name, said in found.items()}


def _caption(path: Path, listed: str | None, extension: str) -> str | None:
    beside = read_sidecar(path, extension)
    if beside is not None and listed is not None and beside != listed:
        raise UsageError(f"{place(path)} has two captions: one in the table, another in the {extension} beside it")
    return listed if beside is None else beside


def _shared(media: Sequence[Path], extension: str) -> list[str]:
    """Files that differ in nothing but their ending have one caption file between them."""
    stems: dict[Path, list[str]] = {}
    for path in media:
        stems.setdefault(path.with_suffix(""), []).append(path.name)
    found = [" and ".join(map(place, names)) for names in stems.values() if len(names) > 1]
    return [f"one {extension} stands for several files: {listed(found)}"] if found else []


def _left(items: Sequence[Item], rooms: Mapping[str, Beside]) -> tuple[str, ...]:
    """Files without a mask where others have one, and what goes with no file."""
    told = [line for room in rooms.values() for line in room.told()]
    lacking = [place(item.path.name) for item in items if item.mask is None]
    if 0 < len(lacking) < len(items):
        told.insert(
            0,
            f"{len(lacking)} of {counted(len(items), 'file has', 'files have')} no mask, all of them counts: "
            f"{listed(lacking)}",
        )
    return tuple(told)


def _is_mask(path: Path) -> bool:
    return path.with_suffix("").suffix.lower() == MASK_ENDING


def _lies_in(path: Path, folders: Sequence[str], own: Path) -> bool:
    """Whether a file is in one of the folders of masks and the like that lie inside of the folder itself."""
    if not folders:
        return False
    real, whole = Path(os.path.realpath(path.parent)), os.path.realpath(own)
    return any(real.is_relative_to(each) for each in folders if each != whole)


def _refuse(folder: Path, text: str, names: Sequence[str]) -> None:
    if names:
        raise UsageError(f"data: {place(folder)} {text}: {listed([place(name) for name in names])}")
