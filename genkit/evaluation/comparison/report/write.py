"""Writing a report: page, contact sheet and numbers in one transaction; outputs as they are made."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import ArtifactError, UsageError, explain
from genkit.evaluation.comparison.loop import Follower
from genkit.evaluation.comparison.makers import Run
from genkit.evaluation.comparison.numbers import Output
from genkit.evaluation.comparison.report.media import Shown, encoded
from genkit.evaluation.comparison.report.page import page
from genkit.evaluation.comparison.report.sheet import sheet
from genkit.evaluation.comparison.results import Comparison, Found, Row
from genkit.media import write_media
from genkit.media.atomic import Files, check_writable
from genkit.media.images import LOSSLESS_PIXELS
from genkit.pipelines.text import slug
from genkit.reading import read_json
from genkit.reading.files import place, reason

#: Prompts and seeds that can be played in the page.
PLAYED = 6
#: A report before the end costs at most this share of the time.
SHARE = 0.01


class Report(Follower):
    """Writes outputs when they are made and the report when rounds end.

    Args:
        path: of the page, ``*.html``. Beside it: ``*.json``, ``*.png``, and the folder ``*_outputs``.
        force: replace what exists.
        inner: who else follows.
        played: prompts and seeds that can be played in the page.
    """

    def __init__(self, path: Path, *, force: bool = False, inner: Follower | None = None, played: int = PLAYED):
        self.path, self.force, self.played = path, force, played
        self.inner = inner or Follower()
        self.shown: list[Shown] = []
        self.pictures: dict[str, list[tuple[str, np.ndarray]]] = {}
        self._lossy = False
        self._written = time.monotonic()
        self._cost = 0.0
        self._names: set[str] = set()
        self._older: set[Path] = set()

    @property
    def files(self) -> list[Path]:
        """The page, the numbers and the sheet."""
        return [self.path, self.path.with_suffix(".json"), self.path.with_suffix(".png")]

    @property
    def folder(self) -> Path:
        """Where the outputs lie."""
        return self.path.with_name(f"{self.path.stem}_outputs")

    def check(self) -> None:
        """Refuse a place where nothing can or must be written, before any work.

        Raises:
            UsageError: another suffix than ``.html``, or a file that exists, without ``force``.
            ArtifactError: the folder cannot be written.
        """
        if self.path.suffix.lower() != ".html":
            raise UsageError(explain("--output", str(self.path), "a name ending in .html"))
        there = [path for path in (*self.files, self.folder) if path.exists()]
        wrong = next((path for path in self.files if path.is_dir()), None)
        if wrong is not None:
            raise UsageError(f"{place(wrong)} is a folder; choose another --output")
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{place(self.folder)} is no folder, outputs belong there; choose another --output")
        if there and not self.force:
            raise self._taken(there[0])
        check_writable(self.path.parent)

    @staticmethod
    def _taken(path: Path) -> UsageError:
        return UsageError(f"{place(path)} exists; add --force to replace it, or choose another --output")

    def __enter__(self) -> Report:
        """Make the folder of outputs: of two runs that passed :meth:`check` at the same time one gets the place.

        Raises:
            UsageError: another run made it meanwhile, without ``force``. ArtifactError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=self.force)
        except FileExistsError as error:
            raise self._taken(self.folder) from error
        except OSError as error:
            raise ArtifactError(
                f"cannot make {place(self.folder)}: {reason(error)}; choose another --output"
            ) from error
        self._older = self._outputs_before()
        return self

    def _outputs_before(self) -> set[Path]:
        """Outputs that the report in this place lists: once this one is whole, those that it lacks are removed."""
        try:
            data = read_json(self.files[1])
            named = {str(run["file"]) for each in data["variants"] for run in each["runs"] if run["file"]}
        except (ArtifactError, KeyError, TypeError):  # none there, or another program's
            return set()
        found = [self.path.parent / name for name in named]
        return {each for path in found if path.parent == self.folder for each in _belonging(path) if each.is_file()}

    def _drop_older(self, comparison: Comparison) -> None:
        made = [self.path.parent / run.file for row in comparison.rows for run in row.runs if run.file]
        for path in self._older.difference(*map(_belonging, made)):
            path.unlink(missing_ok=True)
        self._older = set()

    def __exit__(self, *failure: object) -> None:
        """A run that made nothing leaves no folder in the way of the next."""
        with suppress(OSError):
            self.folder.rmdir()

    # -- as a follower

    def warming(self, name: str) -> None:
        self.inner.warming(name)

    def begins(self, name: str, prompt: str, seed: int) -> None:
        self.inner.begins(name, prompt, seed)

    def progress(self, phase: str, done: int, total: int) -> None:
        self.inner.progress(phase, done, total)

    def failed(self, row: Row) -> None:
        self.inner.failed(row)

    def made(self, row: Row, found: Found, run: Run) -> None:
        """Write the output without loss, its settings inside."""
        found.file = str(self._save(row, found, run).relative_to(self.path.parent))
        self.inner.made(row, found, run)

    def _save(self, row: Row, found: Found, run: Run) -> Path:
        output = run.output
        name = f"{slug(row.name)}-{slug(found.prompt)[:60]}-{found.seed}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        notes = {"seconds": round(run.seconds, 3), "attention": run.report}
        still = output.fps is None or len(output.frames) == 1
        small = output.frames[..., 0].size <= LOSSLESS_PIXELS
        if output.audio is None and (still or small):
            path = self.folder / f"{name}{'.png' if still else '.webp'}"
            write_media(path, output.frames, output.fps, settings=run.record, notes=notes, force=True)
            return path
        even = not (output.frames.shape[1] % 2 or output.frames.shape[2] % 2)
        if even:  # to be played; the numbers are of the exact frames and samples beside it
            write_media(
                self.folder / f"{name}.mp4", output.frames, output.fps, settings=run.record, notes=notes,
                audio=output.audio, sample_rate=output.rate, force=True,
            )  # fmt: skip
        path = self.folder / f"{name}.npz"
        exact: dict[str, Any] = {"frames": output.frames, "fps": str(output.fps)}
        if output.audio is not None:
            exact |= {"audio": output.audio, "sample_rate": output.rate}
        with Files() as files:
            with files.new(path).open("wb") as stream:
                np.savez_compressed(stream, **exact)
        return path

    def round_ended(self, comparison: Comparison, outputs: Mapping[str, Output]) -> None:
        """Keep what the page plays, and write the report when that costs next to nothing."""
        if outputs and len(self.shown) < self.played:
            runs = max((row.runs[-1] for row in comparison.rows if row.name in outputs), key=lambda run: run.seconds)
            first = next(iter(outputs.values()))
            shown = Shown(runs.prompt, runs.seed, None if first.fps is None else float(first.fps))
            for name, output in outputs.items():
                shown.clips[name], lossy = encoded(output)
                self._lossy |= lossy
                self.pictures.setdefault(name, []).append((runs.prompt, output.frames))
            self.shown.append(shown)
        self.inner.round_ended(comparison, outputs)
        if not comparison.finished and time.monotonic() - self._written > self._cost / SHARE:
            self.write(comparison)

    def write(self, comparison: Comparison) -> list[Path]:
        """Write page, numbers and sheet, whole or not at all."""
        begun = time.monotonic()
        shrunk = f"Frames are coded with loss here, at most {640} pixels wide; the outputs' files are exact. "
        text = page(comparison, self.shown, shrunk if self._lossy else "")
        numbers = json.dumps(comparison.to_dict(), indent=2) + "\n"
        with Files() as files:
            files.new(self.files[0]).write_text(text, encoding="utf-8")
            files.new(self.files[1]).write_text(numbers, encoding="utf-8")
            held = io.BytesIO()
            sheet(comparison, self.pictures).save(held, "PNG", optimize=True)
            files.new(self.files[2]).write_bytes(held.getvalue())
        if comparison.finished:
            self._drop_older(comparison)
        self._written = time.monotonic()
        self._cost = self._written - begun
        return self.files


def _belonging(path: Path) -> set[Path]:
    """An output with the files beside it: what is played of one that is kept as numbers, and the records of both."""
    files = {path, path.with_suffix(".mp4")} if path.suffix == ".npz" else {path}
    return files | {each.with_name(f"{each.name}.json") for each in files}
