"""Files that go with a sample under its name: masks of the loss, first frames, pictures to follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genkit.errors import UsageError
from genkit.reading.files import place
from genkit.training.data.folder.told import listed
from genkit.training.data.folder.walk import files_below

#: ``name.mask.png`` beside ``name.jpg`` is its mask.
MASK_ENDING = ".mask"


class Beside:
    """A folder whose files have the names of the samples they belong to, whatever their endings.

    Args:
        what: name of the setting, for messages.
        folder: where they lie.
        endings: of files that count.

    Raises:
        UsageError: no folder, none of these files in it, or two of one name.
    """

    def __init__(self, what: str, folder: Path, endings: Sequence[str]):
        self.what, self.folder, self.used = what, folder, set[str]()
        if not folder.is_dir():
            raise UsageError(f"{what}: {place(folder)} is no folder")
        self._found: dict[str, Path] = {}
        for path in files_below(folder):
            if path.suffix.lower() not in endings:
                continue
            name = _stem(path, folder)
            if name in self._found:
                raise UsageError(
                    f"{what}: {place(folder)} has two files named {place(name)}; allowed: one of each name"
                )
            self._found[name] = path
        if not self._found:
            raise UsageError(f"{what}: {place(folder)} holds no file that ends in {', '.join(endings)}")

    def of(self, path: Path, folder: Path) -> Path | None:
        """The file that goes with a sample of a folder; None where there is none."""
        name = _stem(path, folder)
        self.used.add(name)
        return self._found.get(name)

    def told(self) -> list[str]:
        """What was never asked for."""
        left = [place(path) for name, path in self._found.items() if name not in self.used]
        return [f"{self.what}: {len(left)} belong to no sample: {listed(left)}"] if left else []


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix().removesuffix(MASK_ENDING)


def folder_of(setting: str, folder: Path) -> Path:
    """The folder that a setting names: as it stands, or inside of the folder of samples."""
    given = Path(setting).expanduser()
    return folder / given if not given.is_absolute() and not given.is_dir() and (folder / given).is_dir() else given
