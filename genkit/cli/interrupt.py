"""Ctrl-C and SIGTERM end the program promptly and in one line, from the first import on and however often they come.

Only the standard library is imported here, since this stands before everything else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
TERMINATED = 143
#: Seconds for the ordinary way out, which removes temporary files; a long computation may not leave in time.
GRACE = 3.0
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}

_guarded = threading.Event()
_seen = threading.Event()
#: Which thread writes the line about the interruption; set once, in one step that no signal can divide.
_teller: dict[str, tuple[int, object]] = {}
_told = threading.Event()


def guard() -> None:
    """Heed signals until the process ends. The first Ctrl-C raises KeyboardInterrupt, a second one ends at once.

    The main thread may be inside a computation that takes long; another thread then ends the process after
    :data:`GRACE` seconds. What was being written is removed by the next run.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # a shell made this process deaf to Ctrl-C, or another program listens
    _guarded.set()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_watch, args=(reader,), name="genkit-signals", daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _seen.is_set() or _teller:
        leave(INTERRUPTED)
        return  # the line is being written by what was interrupted here
    _seen.set()
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Told of every signal at once, whatever the main thread does."""
    arrived = 0
    while True:
        with suppress(OSError):
            for number in os.read(reader, 64):
                code = CODES.get(number)
                if code is None:
                    continue
                arrived += 1
                if arrived > 1:
                    leave(code)
                timer = threading.Timer(GRACE, leave, (code,))
                timer.daemon = True
                timer.start()


@contextmanager
def telling() -> Iterator[bool]:
    """Whether the line about the interruption is the caller's to write, inside; it is written once.

    The main thread, a signal in the middle of it and the watching thread may all come here at once.
    """
    if not _guarded.is_set():  # called by a program, which may call again
        yield True
        return
    mine = threading.get_ident(), object()
    first = _teller.setdefault("line", mine) is mine
    try:
        yield first
    finally:
        if first:
            _told.set()


def leave(code: int) -> None:
    """End the process now, without the interpreter's own way out, which may take long and print tracebacks."""
    with telling() as first:
        if first:
            with suppress(OSError):
                os.write(2, b"genkit: error: interrupted\n")
    if _guarded.is_set() and not _told.is_set():
        if _teller["line"][0] == threading.get_ident():
            return  # called by a signal while this very thread writes the line; it ends right after
        _told.wait(GRACE)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
