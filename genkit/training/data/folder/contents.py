"""What files held when a run began: their content's digest, and whether they have changed since."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from genkit.errors import ArtifactError
from genkit.reading import file_digest
from genkit.reading.files import place, reason

_THREADS = 4


@dataclass
class Contents:
    """Digests of files, each read once.

    A file is told by its size and time stamps whether it is still the one that was read: its pixels must never be
    stored under the digest of others.
    """

    _known: dict[Path, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes when it was first asked for.

        Raises:
            ArtifactError: it cannot be read, or was written meanwhile.
        """
        if path not in self._known:
            before = _stamp(path)
            self._known[path] = file_digest(path), before
            self.check(path)
        return self._known[path][0]

    def read_all(self, paths: Iterable[Path]) -> None:
        """Digests of many files, several at once. Raises as :meth:`digest`, after all were tried."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self.digest, dict.fromkeys(paths)):
                pass

    def check(self, path: Path) -> None:
        """Refuse a file that has changed since its digest was made."""
        if path in self._known and _stamp(path) != self._known[path][1]:
            raise ArtifactError(
                f"{place(path)} was changed while it was in use; start again when it is as it should be"
            )


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {place(path)}: {reason(error)}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino
