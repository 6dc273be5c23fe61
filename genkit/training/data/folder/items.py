"""The files of a folder: what is in it, what each is called, and what goes with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genkit.errors import GenkitError, UsageError
from genkit.reading.files import place
from genkit.training.data.folder.beside import MASK_ENDING, Beside, folder_of
from genkit.training.data.folder.captions import TABLES, read_sidecar, read_table
from genkit.training.data.folder.told import listed
from genkit.training.data.folder.walk import files_below

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
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


def read_folder(
    path: str | Path,
    caption: str | None = None,
    extension: str = ".txt",
    masks: str | None = None,
    given: Mapping[str, str] | None = None,
) -> Folder:
    """Find a folder's pictures and videos, also in folders below, with their captions.

    Args:
        path: the folder.
        caption: for every file that has no own one; None: each must have one.
        extension: of the text files beside media.
        masks: folder of masks with the names of the media. ``name.mask.png`` beside a file is its mask in any case.
        given: role -> folder of pictures or clips with the names of the media.

    Raises:
        UsageError: no folder, nothing in it, files without captions or with two, a table that names what is not there,
            files without what must be given with them.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(f"data: {place(folder)} is no folder")
    table = read_table(folder)
    beside = {"masks": masks, **(given or {})}
    rooms = {
        what: Beside(what, folder_of(setting, folder), PICTURES + VIDEOS) for what, setting in beside.items() if setting
    }
    inside = [room.folder.resolve() for room in rooms.values()]
    files = [found for found in files_below(folder) if not _lies_in(found, inside, folder)]
    shown = [found for found in files if found.suffix.lower() in PICTURES + VIDEOS]
    own_masks = {found.with_suffix("").with_suffix(""): found for found in shown if _is_mask(found)}
    media = [found for found in shown if not _is_mask(found)]
    if not media:
        endings = ", ".join(PICTURES + VIDEOS)
        raise UsageError(f"data: {place(folder)} holds no picture and no video; allowed: files that end in {endings}")
    names = {found.relative_to(folder).as_posix(): found for found in media}
    _refuse(folder, "names files that are not there", [name for name in table or {} if name not in names])
    said = _captions(folder, names, table or {}, caption, extension)
    items = []
    for name, found in names.items():
        mask = own_masks.pop(found.with_suffix(""), None) or (rooms["masks"].of(found, folder) if masks else None)
        told = tuple((role, room.of(found, folder)) for role, room in rooms.items() if role != "masks")
        items.append(Item(found, said[name], mask=mask, given=tuple((role, each) for role, each in told if each)))
    for role in given or {}:
        lacking = [item.path.name for item in items if role not in dict(item.given)]
        _refuse(folder, f"has files without a picture of their name in the folder of {role}", lacking)
    used = {*media, *(item.mask for item in items), *(folder / name for name in TABLES)}
    used |= {found.with_suffix(extension) for found in media}
    return Folder(
        folder,
        tuple(items),
        tuple(found.relative_to(folder).as_posix() for found in files if found not in used),
        (*_shared(media, extension), *_unmasked(items), *(line for room in rooms.values() for line in room.told())),
    )


def _captions(
    folder: Path, names: Mapping[str, Path], table: Mapping[str, str], caption: str | None, extension: str
) -> dict[str, str]:
    """Caption of every file; all that cannot be read are told at once."""
    found: dict[str, str | None] = {}
    wrong: list[str] = []
    for name, path in names.items():
        try:
            own = _caption(path, table.get(name), extension)
            found[name] = caption if own is None else own
        except GenkitError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError(f"data: {len(wrong)} captions cannot be used: {listed(wrong, '; ')}")
    text = f"has files without a caption (a {extension} beside each, {' or '.join(TABLES)}, or one caption for all)"
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


def _unmasked(items: Sequence[Item]) -> list[str]:
    lacking = [place(item.path.name) for item in items if item.mask is None]
    if not lacking or len(lacking) == len(items):
        return []
    return [f"{len(lacking)} of {len(items)} files have no mask, all of them counts: {listed(lacking)}"]


def _is_mask(path: Path) -> bool:
    return path.with_suffix("").suffix.lower() == MASK_ENDING


def _lies_in(path: Path, folders: Sequence[Path], own: Path) -> bool:
    """Whether a file is in one of the folders of masks and the like that lie inside of the folder itself."""
    real = path.resolve()
    return any(real.is_relative_to(each) for each in folders if each != own.resolve())


def _refuse(folder: Path, text: str, names: Sequence[str]) -> None:
    if names:
        raise UsageError(f"data: {place(folder)} {text}: {listed([place(name) for name in names])}")
