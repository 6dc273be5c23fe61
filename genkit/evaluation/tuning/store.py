"""What tunings of a model measured so far, in a folder: one that was stopped goes on, another one uses what fits.

Every result has a name that follows from what it depends on: :func:`digest` of prompts, seeds and settings. So tunings
to another budget, with other prompts or settings to choose among share a folder, and nothing is mixed up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.media.atomic import Files, check_writable
from genkit.reading import read_json

ABOUT = "about.json"


def digest(*values: Any) -> str:
    """Twelve letters that follow from values as JSON has them."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


class Store:
    """A folder of results. Each file appears whole or not at all. Nothing is written before the first result.

    Args:
        folder: new, empty, or of the same model and settings of its runs.
        about: what all results depend on.

    Raises:
        UsageError: a folder of other runs, or with other things in it. ArtifactError: it cannot be written.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        check_writable(folder, "--work")
        self.folder, self._about = folder, json.loads(json.dumps(about))
        place = folder / ABOUT
        if place.is_file():
            before = read_json(place)
            if before != self._about:
                names = [*self._about, *(before if isinstance(before, dict) else ())]
                differ = [name for name in dict.fromkeys(names) if not self._same(before, name)]
                raise UsageError(
                    f"{folder} holds results of another tuning ({', '.join(differ)} differ); remove it or choose "
                    f"another --work"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds other things; choose another --work")

    def _same(self, before: Any, name: str) -> bool:
        return isinstance(before, dict) and name in before and before[name] == self._about.get(name)

    def _begin(self) -> None:
        """Say whose results these are."""
        place = self.folder / ABOUT
        if not place.is_file():
            self._write(place, self._about)

    def _write(self, path: Path, values: Any) -> None:
        with Files() as files:
            files.new(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def value(self, name: str, make: Callable[[], Any], anew: bool = False) -> Any:
        """A result by name, made and written where there is none, or ``anew``."""
        path = self.folder / f"{name}.json"
        if anew or not path.is_file():
            made = make()
            self._begin()
            self._write(path, made)
        return read_json(path)

    def has(self, name: str) -> bool:
        """Whether a result or frames of that name are there."""
        return any((self.folder / f"{name}{ending}").is_file() for ending in (".json", ".npz"))

    def frames(self, name: str, make: Callable[[], np.ndarray], anew: bool = False) -> np.ndarray:
        """Frames by name, alike."""
        path = self.folder / f"{name}.npz"
        if anew or not path.is_file():
            made = make()
            self._begin()
            with Files() as files, files.new(path).open("wb") as out:
                np.savez_compressed(out, frames=made)
        with np.load(path) as held:
            return held["frames"]

    def count(self, beginning: str) -> int:
        """How many results have names that begin so."""
        return sum(path.name.startswith(beginning) for path in self.folder.glob("*.*")) if self.folder.is_dir() else 0
