"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from genkit.errors import ArtifactError
from genkit.reading.files import place, reason

PREFIX = ".genkit-"
_NAME = re.compile(r"\.genkit-([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{12}(?:\.old\.(?P<old>.+)|\.[^.]*)?")


def check_writable(folder: Path, setting: str = "--output") -> None:
    """Prove that a file can be made in ``folder``, or, where it does not exist yet, in the nearest folder above it.

    Permission bits say little (root ignores them, network and read-only mounts do too), so a file is really made and
    removed.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        if nearest.is_symlink():
            raise ArtifactError(
                f"cannot write into {folder}: the link {nearest} leads nowhere; choose another {setting}"
            )
        nearest = nearest.parent
    probe = nearest / _temporary(".probe")
    try:
        remove_left(nearest)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write into {place(folder)}: {reason(error)}; choose another {setting}") from error


def _temporary(ending: str) -> str:
    """A hidden name that tells who is writing: the machine and the process."""
    return f"{PREFIX}{_machine()}-{os.getpid()}-{secrets.token_hex(6)}{ending}"


@cache
def _machine() -> str:
    """Eight digits for this start of this machine and this space of process numbers."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


def remove_left(folder: Path) -> None:
    """Remove what a run of genkit on this machine left in a folder when it was killed while writing.

    Files of processes that are alive, of other machines and of other programs are left alone. An output that was being
    replaced gets its name back.
    """
    for path in list(folder.glob(f"{PREFIX}*")) if folder.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if found is None or found[1] != _machine() or _alive(int(found[2])):
            continue
        with suppress(OSError):
            if found["old"] and not (folder / found["old"]).exists():
                path.rename(folder / found["old"])
            else:
                _remove(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


class Files:
    """A transaction over files and folders.

    Use as a context manager: :meth:`new` hands out a temporary path per final path. Leaving without an exception
    flushes and
    renames all of them; leaving with one removes all of them, so neither a full disk nor Ctrl-C leaves half a file.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []
        self._cleaned: set[Path] = set()

    def __enter__(self) -> Files:
        return self

    def new(self, final: Path) -> Path:
        """A temporary path beside ``final`` with the same suffix; it becomes ``final`` when the transaction ends
        well."""
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.parent not in self._cleaned:
            self._cleaned.add(final.parent)
            remove_left(final.parent)
        temporary = final.parent / _temporary(final.suffix)
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
            names = ", ".join(place(final) for _, final in self._pending[:1])
            raise ArtifactError(f"could not write {names}: {reason(error)}; no partial file was left") from error

    def _commit(self) -> None:
        for temporary, _ in self._pending:
            _flush(temporary)
        for temporary, final in self._pending:
            if final.is_dir():
                retired = final.parent / _temporary(f".old.{final.name}")
                final.rename(retired)
                temporary.rename(final)
                _remove(retired)
            else:
                os.replace(temporary, final)


def discard(path: Path) -> None:
    """Remove a file or a folder so that, whenever the process dies, the whole of it or nothing is there."""
    gone = path.with_name(_temporary(""))
    path.rename(gone)
    _remove(gone)


def _flush(path: Path) -> None:
    """Force a file, or every file of a folder, to the disk: a delayed "no space left" must surface before the
    rename."""
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
