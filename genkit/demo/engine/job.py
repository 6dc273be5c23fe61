"""Something that is being made: what it is at, for any number of watchers, and the wish to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

WAITING, QUEUED, LOADING, STEPS, DECODING, DONE, FAILED, STOPPED = (
    "waiting", "queued", "loading", "steps", "decoding", "done", "failed", "stopped",
)  # fmt: skip
ENDS = (DONE, FAILED, STOPPED)
#: Seconds that a run goes on with nobody watching.
GRACE = 20.0


@dataclass(frozen=True)
class State:
    """What a job is at.

    Args:
        phase: one of the names above.
        share: of all the work, from 0 to 1.
        step, steps: of the current run.
        left: seconds until the end; None as long as nobody can tell.
        preview: uint8 (H, W, 3), what there is so far; None before the first step, or where there is none.
        run, runs: number of the current run from 1, and of all.
        made: results that are finished, in order.
        message: why it failed.
        notes: what the user should know, one line each.
    """

    phase: str = WAITING
    share: float = 0.0
    step: int = 0
    steps: int = 0
    left: float | None = None
    preview: Any = None
    run: int = 1
    runs: int = 1
    made: tuple[Any, ...] = ()
    message: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in ENDS


class Job:
    """One request of a visitor, of one or several runs. Any thread may read, watch and stop it.

    Args:
        tab: the tab that asked.
        wanted: settings of the runs.
    """

    def __init__(self, tab: str = "", wanted: Sequence[Any] = ()):
        self.tab, self.wanted = tab, tuple(wanted)
        self._state = State()
        self._version = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._watchers = 0
        self._said: str | None = None

    @property
    def state(self) -> State:
        """What it is at now."""
        return self._state

    def tell(self, **changes: Any) -> None:
        """Change the state and wake the watchers."""
        with self._changed:
            self._state = replace(self._state, **changes)
            self._version += 1
            self._changed.notify_all()

    def say(self, text: str) -> None:
        """Words for what runs, such as another prompt; of several only the last are heard."""
        self._said = text

    def heard(self) -> str | None:
        """Words that were said since this was asked last; None when nothing was."""
        said, self._said = self._said, None
        return said

    def stop(self) -> None:
        """Ask for the end, which comes within one step."""
        self._stop.set()

    def stopping(self) -> bool:
        """Whether the end was asked for."""
        return self._stop.is_set()

    def left(self, grace: float = GRACE) -> None:
        """A watcher left before the end. Unless somebody watches after ``grace`` seconds, nobody wants the result: a
        page that is loaded again comes back sooner."""

        def end() -> None:
            if not self._watchers:
                self.stop()

        if not self.state.ended:
            timer = threading.Timer(grace, end)
            timer.daemon = True
            timer.start()

    def watch(self, every: float = 10.0) -> Iterator[State]:
        """The state now and after every change until the end; slow watchers see the newest only.

        Args:
            every: seconds after which an unchanged state is given again, so that a watcher can leave.
        """
        seen = -1
        self._watchers += 1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._version != seen, every)  # noqa: B023
                    seen, state = self._version, self._state
                yield state
                if state.ended:
                    return
        finally:
            self._watchers -= 1
