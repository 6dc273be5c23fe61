"""Where the states of a run are kept: one file that is replaced, or numbered folders of which the newest remain."""

from __future__ import annotations

import re
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UsageError, shown
from genkit.media.atomic import Files, discard
from genkit.reading.files import place
from genkit.training.engine.checkpoint import atomic_save, load_checkpoint, save, told_as_os_error

#: Value of ``resume_from_checkpoint`` that means the newest whole one.
LATEST = "latest"
STATE = "trainer.pt"
_NUMBERED = re.compile(r"checkpoint-(\d{1,15})")

#: Writes further files of a checkpoint into its folder.
Export = Callable[[Path], None]
#: Called with the step by every process of a run, since shards are gathered; the first one calls what it returns.
Exporter = Callable[[int], Export]


class Keep(ABC):
    """Where the states of a run are kept.

    Args:
        folder: of the run, where the log lies too.
        last: the checkpoint that a run could go on from now; None before there is one.
    """

    folder: Path
    last: Path | None

    @abstractmethod
    def find(self) -> tuple[dict[str, Any], Path] | None:
        """The state to go on from and where it lies; None for a fresh run."""

    @abstractmethod
    def write(self, state: dict[str, Any], export: Export | None) -> None:
        """Keep a state; called by the first process alone.

        Raises:
            ArtifactError: it could not be written; the one before is whole.
        """

    def exporter(self, step: int) -> Export | None:
        """What else belongs to a checkpoint; called by every process before :meth:`write`."""
        return None

    def how_to_go_on(self) -> str:
        """What to do after a stop, for messages."""
        return "the same command goes on from there"


class OneFile(Keep):
    """One file, replaced whole."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.path = self.folder / "checkpoint.pt"
        self.last = self.path if self.path.exists() else None

    def find(self) -> tuple[dict[str, Any], Path] | None:
        """See :meth:`Keep.find`."""
        return (load_checkpoint(self.path), self.path) if self.path.exists() else None

    def write(self, state: dict[str, Any], export: Export | None) -> None:
        """See :meth:`Keep.write`."""
        atomic_save(state, self.path)
        self.last = self.path


@dataclass
class Numbered(Keep):
    """Folders ``checkpoint-N``, each with the state and what ``export`` adds; written beside and renamed, so that one
    that is there is whole.

    Args:
        folder: where they lie.
        resume: :data:`LATEST`, the folder of a checkpoint, or None for a fresh run.
        limit: how many to keep; None for all.
        export: see :data:`Exporter`.
        fingerprint: group -> name -> plain value of all that must be the same when a run goes on.
        told: called with a line for each broken checkpoint that is passed over.
    """

    folder: Path
    resume: str | None = None
    limit: int | None = None
    export: Exporter | None = None
    fingerprint: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: Callable[[str], None] = warnings.warn
    last: Path | None = None

    def find(self) -> tuple[dict[str, Any], Path] | None:
        """See :meth:`Keep.find`.

        Raises:
            UsageError: checkpoints are there and nobody said whether to go on from one, or one is of another run.
            ArtifactError: the checkpoint that was asked for cannot be read or does not tell its run, or none of all can
                be read.
        """
        found = self.all()
        if self.resume is None:
            if found:
                raise UsageError(
                    f"{place(self.folder)} holds {found[-1].name} of an earlier run; --resume-from-checkpoint latest "
                    "goes on with it, another output folder begins afresh"
                )
            return None
        if self.resume != LATEST:
            return self._read(self.asked(Path(self.resume).expanduser()))
        broken = []
        for path in reversed(found):
            try:
                state = load_checkpoint(path / STATE)
            except ArtifactError as error:
                broken.append(path)
                self.told(f"{place(path)} is broken, the one before it is taken: {error}")
                continue
            return self._checked(state, path)
        if broken:
            raise ArtifactError(f"none of the {len(broken)} checkpoints in {place(self.folder)} can be read")
        return None

    def all(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(path, _NUMBERED.fullmatch(path.name)) for path in self.folder.iterdir() if path.is_dir()]
        numbered = {path: int(match[1]) for path, match in found if match}
        return sorted(numbered, key=lambda path: numbered[path])

    def asked(self, path: Path) -> Path:
        """The checkpoint that was asked for by its folder, or by its name in the run's.

        Raises:
            ArtifactError: it is none. UsageError: there are newer ones.
        """
        here = self.folder / path
        path = path if path.is_dir() or not here.is_dir() else here
        if not (path / STATE).is_file():
            names = ", ".join(each.name for each in self.all()) or "none"
            raise ArtifactError(
                f"--resume-from-checkpoint: {place(path)} holds no {STATE}; checkpoints in "
                f"{place(self.folder)}: {names}"
            )
        newer = [each for each in self.all() if _number(each) > _number(path)] if path.parent == self.folder else []
        if newer:
            raise UsageError(
                f"--resume-from-checkpoint: {newer[-1].name} is newer than {path.name}, and 'latest' would later take "
                "it; move the newer ones away, or give another output folder"
            )
        return path

    def _read(self, path: Path) -> tuple[dict[str, Any], Path]:
        return self._checked(load_checkpoint(path / STATE), path)

    def _checked(self, state: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
        if self.fingerprint and "fingerprint" not in state:
            raise ArtifactError(f"{place(path)} does not tell of which run it is; give another output folder")
        differ = differences(state.get("fingerprint", {}), self.fingerprint)
        if differ:
            raise UsageError(
                f"{place(path)} is of a run with other settings: {'; '.join(differ)}. Go on with the same ones, or "
                "give another output folder"
            )
        self.last = path
        return state, path

    def exporter(self, step: int) -> Export | None:
        """See :meth:`Keep.exporter`."""
        return None if self.export is None else self.export(step)

    def write(self, state: dict[str, Any], export: Export | None) -> None:
        """See :meth:`Keep.write`."""
        path = self.folder / f"checkpoint-{state['step']}"
        if path == self.last:
            return
        with Files() as files:
            staged = files.new(path)
            staged.mkdir()
            save({**state, "fingerprint": _plain(self.fingerprint)}, staged / STATE)
            if export is not None:
                with told_as_os_error():
                    export(staged)
        self.last = path
        for old in self.all()[: -self.limit] if self.limit else []:
            discard(old)

    def how_to_go_on(self) -> str:
        """See :meth:`Keep.how_to_go_on`."""
        return "the same command with --resume-from-checkpoint latest goes on from there"

    def check_space(self, needed: int) -> None:
        """Refuse a disk that has no room for the next checkpoint; ArtifactError.

        Args:
            needed: bytes of one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ArtifactError(
                f"{place(self.folder)} has room for {free / 1e6:.0f} MB, a checkpoint needs {needed / 1e6:.0f} MB; "
                "make room, or give another output folder"
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words. Of a group that one of them does not have nothing is known."""
    now = _plain(now)
    found = []
    for group in [name for name in before if name in now]:
        old, new = before.get(group, {}), now.get(group, {})
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                found.append(f"{name} was {shown(old.get(name))} and is {shown(new.get(name))}")
    return found


def _plain(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, as a file gives them back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _number(path: Path) -> int:
    match = _NUMBERED.fullmatch(path.name)
    return int(match[1]) if match else -1
