"""Who uses the demo: a secret name, a folder of their own, what they made. Nobody sees another's, and it expires."""

from __future__ import annotations

import hmac
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError

if TYPE_CHECKING:
    from genkit.demo.engine.job import Job

_TOKEN = re.compile(r"[0-9a-f]{32}")
#: Results that a visitor keeps; the oldest go first.
KEPT = 48


@dataclass(frozen=True)
class Entry:
    """Something that was made.

    Args:
        path: the file.
        caption: one line about it.
        command: the subcommand that would make it.
        settings: of the run, as they are stored.
    """

    path: Path
    caption: str
    command: str
    settings: dict[str, Any]


@dataclass
class Visitor:
    """One browser, or one client of the interface for programs.

    Args:
        token: its secret name, which the browser keeps.
        folder: where its files lie; nobody else's do.
        entries: what it made, the newest last.
        job: what is being made for it, or was last.
        loras: files that it trained, by the name it gave them.
        picks: of every tab the results of its last run, and which of them is shown.
        touched: when it was last heard of.
    """

    token: str
    folder: Path
    entries: list[Entry] = field(default_factory=list)
    job: Job | None = None
    loras: dict[str, Path] = field(default_factory=dict)
    picks: dict[str, dict[str, Any]] = field(default_factory=dict)
    touched: float = 0.0

    def new_file(self, suffix: str) -> Path:
        """A path in its folder that nothing has yet and nobody guesses."""
        return self.folder / f"genkit-{secrets.token_hex(8)}{suffix}"

    def keep(self, entry: Entry) -> None:
        """Add a result; beyond :data:`KEPT` the oldest is deleted."""
        self.entries.append(entry)
        while len(self.entries) > KEPT:
            gone = self.entries.pop(0).path
            gone.unlink(missing_ok=True)
            gone.with_name(gone.name + ".json").unlink(missing_ok=True)

    def inside(self, path: str | Path) -> Path:
        """The path, when it leads into the visitor's folder.

        Raises:
            UsageError: it leads elsewhere.
        """
        found = Path(path).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            raise UsageError("that file is none of yours; choose one from your results or upload it")
        return found


class Visitors:
    """Everybody who uses one server.

    Args:
        root: a folder that this server alone uses; every visitor gets one in it.
        expires: seconds after which a visitor who was not heard of is forgotten, with all files.
        most: visitors at a time; the one not heard of for the longest makes room.
        clock: seconds from anywhere.
    """

    def __init__(
        self, root: Path, expires: float = 3600.0, most: int = 500, clock: Callable[[], float] = time.monotonic
    ):
        self.root, self.expires, self.most = root, expires, most
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._known: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def of(self, token: str | None) -> Visitor:
        """The visitor of a secret name; a new one of that name where it is unknown or expired, of another name where it
        is malformed."""
        with self._lock:
            self._forget_expired()
            named = isinstance(token, str) and _TOKEN.fullmatch(token)
            found = self._known.get(token) if named else None  # type: ignore[arg-type]
            if found is None:
                found = self._new(token if named else secrets.token_hex(16))  # type: ignore[arg-type]
            found.touched = self._clock()
            return found

    def name_of(self, session: str | None) -> str | None:
        """The secret name of a session of programs, which keep none themselves; None for None."""
        if session is None:
            return None
        return hmac.digest(self._secret, session.encode("utf-8", "replace"), "sha256").hex()[:32]

    def _new(self, token: str) -> Visitor:
        idle = [each for each in self._known.values() if not _busy(each)]
        if len(self._known) >= self.most and idle:
            self._forget(min(idle, key=lambda each: each.touched))
        folder = self.root / f"visitor-{secrets.token_hex(16)}"
        folder.mkdir(mode=0o700)
        self._known[token] = Visitor(token, folder)
        return self._known[token]

    def _forget_expired(self) -> None:
        limit = self._clock() - self.expires
        for each in [each for each in self._known.values() if each.touched < limit and not _busy(each)]:
            self._forget(each)

    def _forget(self, visitor: Visitor) -> None:
        del self._known[visitor.token]
        shutil.rmtree(visitor.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Forget who expired; called now and then."""
        with self._lock:
            self._forget_expired()

    def close(self) -> None:
        """Stop what runs and forget everybody."""
        with self._lock:
            for each in list(self._known.values()):
                if each.job is not None:
                    each.job.stop()
                self._forget(each)

    def __len__(self) -> int:
        return len(self._known)


def _busy(visitor: Visitor) -> bool:
    return visitor.job is not None and not visitor.job.state.ended
