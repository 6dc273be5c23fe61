"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from genkit.errors import ArtifactError

PREFIX = ".genkit-"


def check_writable(folder: Path) -> None:
    """Prove that a file can be made in ``folder``, or, where it does not exist yet, in the nearest folder above it.

    Permission bits say little (root ignores them, network and read-only mounts do too), so a file is really made and
    removed.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    probe = nearest / f"{PREFIX}{secrets.token_hex(4)}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write into {folder}: {reason(error)}; choose another --output") from error


def reason(error: OSError) -> str:
    """The operating system's own words, without the error number and the path."""
    return error.strerror or str(error) or type(error).__name__


class Files:
    """A transaction over files and folders.

    Use as a context manager: :meth:`new` hands out a temporary path per final path. Leaving without an exception
    flushes and
    renames all of them; leaving with one removes all of them, so neither a full disk nor Ctrl-C leaves half a file.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []

    def __enter__(self) -> Files:
        return self

    def new(self, final: Path) -> Path:
        """A temporary path beside ``final`` with the same suffix; it becomes ``final`` when the transaction ends
        well."""
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f"{PREFIX}{secrets.token_hex(6)}{final.suffix}"
        self._pending.append((temporary, final))
        return temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as failure:
            error = failure
        finally:
            for temporary, _ in self._pending:
                _remove(temporary)
        if isinstance(error, OSError):
            names = ", ".join(str(final) for _, final in self._pending[:1])
            raise ArtifactError(f"could not write {names}: {reason(error)}; no partial file was left") from error

    def _commit(self) -> None:
        for temporary, _ in self._pending:
            _flush(temporary)
        for temporary, final in self._pending:
            if final.is_dir():
                retired = final.parent / f"{PREFIX}{secrets.token_hex(6)}.old"
                final.rename(retired)
                temporary.rename(final)
                _remove(retired)
            else:
                os.replace(temporary, final)


def _flush(path: Path) -> None:
    """Force a file, or every file of a folder, to the disk: a delayed "no space left" must surface before the
    rename."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
