"""What a tuning measured so far, in a folder: one that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import UsageError
from genkit.media.atomic import Files, check_writable
from genkit.reading import read_json

ABOUT = "about.json"


class Store:
    """A folder of results. Each file appears whole or not at all.

    Args:
        folder: new, empty, or of the same tuning.
        about: everything the results depend on.

    Raises:
        UsageError: a folder of another tuning, or with other things in it.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        check_writable(folder, "--work")
        self.folder = folder
        place = folder / ABOUT
        about = json.loads(json.dumps(about))
        if place.is_file():
            before = read_json(place)
            if before != about:
                names = [name for name in about if not isinstance(before, dict) or before.get(name) != about[name]]
                raise UsageError(
                    f"{folder} holds results of another tuning ({', '.join(names)} differ); remove it or choose "
                    f"another --work"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds other things; choose another --work")
        else:
            self._write(place, about)

    def _write(self, path: Path, values: Any) -> None:
        with Files() as files:
            files.new(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def value(self, name: str, make: Callable[[], Any], anew: bool = False) -> Any:
        """A result by name, made and written where there is none, or ``anew``."""
        path = self.folder / f"{name}.json"
        if anew or not path.is_file():
            self._write(path, make())
        return read_json(path)

    def has(self, name: str) -> bool:
        """Whether a result or frames of that name are there."""
        return any((self.folder / f"{name}{ending}").is_file() for ending in (".json", ".npz"))

    def frames(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Frames by name, alike."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            made = make()
            with Files() as files, files.new(path).open("wb") as out:
                np.savez_compressed(out, frames=made)
        with np.load(path) as held:
            return held["frames"]
