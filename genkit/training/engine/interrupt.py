"""Ctrl-C in training: the first finishes the step and saves, the second ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from genkit.errors import GenkitError


class Stopped(GenkitError):
    """A run that was stopped on request after its state was saved; exit code 130."""

    exit_code = 130


class _Break(BaseException):
    """Leaves work that changes nothing in the training."""


class Interrupt:
    """Whether the user has asked to stop; a context manager around a run.

    Signals belong to the main thread: in another one nothing changes. Whoever listened before listens again afterwards.
    """

    def __init__(self) -> None:
        self.asked = False
        self._breakable = False
        self._before: list = []

    def __enter__(self) -> Interrupt:
        listening = signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)
        if threading.current_thread() is threading.main_thread() and listening:
            # The command line's watcher would end the process before a long step does.
            descriptor = signal.set_wakeup_fd(-1)
            self._before = [signal.signal(signal.SIGINT, self._heed), descriptor]
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            handler, descriptor = self._before
            signal.signal(signal.SIGINT, handler)
            signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\ngenkit: stopping: this step is finished and saved; Ctrl-C again stops at once",
            file=sys.stderr,
            flush=True,
        )
        if self._breakable:
            raise _Break

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Work that Ctrl-C leaves at once, because nothing is lost with it: validation."""
        self._breakable = True
        try:
            yield
        except _Break:
            pass
        finally:
            self._breakable = False
