"""Outputs that a run is going to write: of two runs at once only one may have a name, and the other is told at once.

A claim is a lock that the system lifts when the process ends, however it ends, so none is ever left behind. It lies
in the folder of temporary files, under a name made of the output's; nothing appears beside the output.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from genkit.errors import UsageError
from genkit.reading.files import place

try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs are then told apart when the second one writes
    fcntl = None  # type: ignore[assignment]


@contextmanager
def claimed(outputs: Iterable[Path]) -> Iterator[None]:
    """Hold the names of outputs while they are made.

    Raises:
        UsageError: another run holds one of them.
    """
    with ExitStack() as held:
        for output in outputs:
            held.enter_context(_claim(output))
        yield


@contextmanager
def _claim(output: Path) -> Iterator[None]:
    lock = None if fcntl is None else _opened(output)
    if lock is None:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = f"another run is writing {place(output)}; wait for it, or choose another --output"
            raise UsageError(told) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(lock)


def _opened(output: Path) -> int | None:
    """The file that stands for an output; None where there is no place for one."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"genkit-claims-{os.getuid() if hasattr(os, 'getuid') else 0}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return None
