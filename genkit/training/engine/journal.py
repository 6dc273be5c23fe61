"""What a run tells: smoothed figures in ``log.jsonl``, a progress line, and any tracker of accelerate (TensorBoard)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError
from genkit.media.atomic import Files
from genkit.reading import parse_json, read_text
from genkit.reading.files import MIB, place

LOG = "log.jsonl"
#: Bytes of a log; a run of a week writes a few MiB.
MOST_LOG = 256 * MIB
#: Trackers besides the log, and the package that each needs.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
_KEPT, _NEW = 0.97, 0.03
#: Seconds between two progress lines: on a terminal, where one is drawn over the other, and in a file.
_PAUSE, _FILE_PAUSE = 1.0, 30.0


class Journal:
    """The log of one run, written by its first process.

    Args:
        folder: where the log lies.
        main: whether this process writes.
        every: steps between two lines.
        tracker: None, or one of :data:`TRACKERS`.
        title: of the progress line.
    """

    def __init__(self, folder: Path, main: bool, every: int, tracker: str | None = None, title: str = "training"):
        check_tracker(tracker)
        self.path, self.main, self.every, self.title = folder / LOG, main, every, title
        self.smooth: dict[str, float] = {}
        self._found: dict[str, float] = {}
        self._wanted = tracker
        self._tracker: Any = None
        self._bar: Any = None
        self._shown = 0.0
        self._live = sys.stderr.isatty()
        self._begun = (0.0, 0.0)

    def begin(self, step: int, progress: float, smooth: Mapping[str, float]) -> None:
        """Start or go on at a step: lines of steps that are done again are taken out of the log."""
        from tqdm import tqdm

        self.smooth = dict(smooth)
        if self.main:
            self._rewind(step)
        self._begun = (time.monotonic(), progress)
        self._bar = tqdm(
            total=1.0,
            initial=min(progress, 1.0),
            desc=self.title,
            disable=not (self.main and self._live),
            bar_format="{desc} {percentage:3.0f}% {elapsed}<{remaining} {postfix}",
            mininterval=5.0,
        )
        if self._wanted is not None and self.main:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            tensorboard = self._wanted == "tensorboard"
            more = {"logging_dir": str(self.path.parent), "purge_step": step} if tensorboard else {}
            self._tracker = LOGGER_TYPE_TO_CLASS[self._wanted]("tensorboard" if tensorboard else self.title, **more)
            self._tracker.start()

    def _rewind(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = read_text(self.path, MOST_LOG, "training log").splitlines()
        # The last line may be half written.
        whole = [line for line in lines if line.endswith("}")]
        kept = [line for line in whole if parse_json(line, place(self.path)).get("step", 0) <= step]
        if kept != lines:
            with Files() as files:
                files.new(self.path).write_text("".join(f"{line}\n" for line in kept))

    def step(self, step: int, seconds: float, rate: float, progress: float, figures: Mapping[str, float]) -> None:
        """Take the figures of a step down; written every so many steps."""
        for name, given in figures.items():
            value = float(given)  # checkpoints hold plain values alone, and a task may give NumPy's
            self.smooth[name] = value if name not in self.smooth else _KEPT * self.smooth[name] + _NEW * value
        if self._tracker is not None:
            self._tracker.log({**figures, "lr": rate}, step=step)
        if not self.main:
            return
        due = step % self.every == 0
        if due:
            told = {name: round(value, 5) for name, value in self.smooth.items()}
            self._write({"step": step, "seconds": round(seconds, 1), "lr": rate, **told})
        # A terminal is written to far slower than steps of tiny models are made.
        pause = _PAUSE if self._live else _FILE_PAUSE
        if (self._live and due and self.every > 1) or time.monotonic() - self._shown > pause:
            self._show(step, progress)

    def _show(self, step: int, progress: float) -> None:
        self._shown = time.monotonic()
        figures = {**self.smooth, **self._found}
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if not self._live:
            print(f"{self.title} {100 * progress:3.0f}% {self._left(progress)} step {step} {shown}", file=sys.stderr)
            return
        self._bar.set_postfix_str(f"step {step} {shown}", refresh=False)
        self._bar.n = min(progress, 1.0)
        self._bar.refresh()

    def _left(self, progress: float) -> str:
        """How long the rest takes at the speed so far."""
        started, before = self._begun
        if progress <= before:
            return "time left unknown,"
        seconds = (time.monotonic() - started) * (1 - progress) / (progress - before)
        return f"{max(seconds, 0) / 60:.1f} min left,"

    def _write(self, row: Mapping[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def show(self, step: int, found: Mapping[str, Any]) -> None:
        """What a validation found: numbers, and pictures or clips (uint8, (H, W, 3) or (T, H, W, 3)) by name. The
        numbers stay in the progress line until the next ones come."""
        import numpy as np

        frames = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        numbers = {name: value for name, value in found.items() if name not in frames}
        self._found.update({name: value for name, value in numbers.items() if isinstance(value, float)})
        if numbers and self.main:
            self._write({"step": step, **numbers})
        if self._tracker is None:
            return
        self._tracker.log(numbers, step=step)
        if frames:
            images = {name: value if value.ndim == 4 else value[None] for name, value in frames.items()}
            more = {"dataformats": "NHWC"} if self._wanted == "tensorboard" else {}
            self._tracker.log_images(images, step=step, **more)

    def close(self) -> None:
        """Take down the progress line and end the tracker."""
        if self._bar is not None:
            self._bar.close()
        if self._tracker is not None:
            self._tracker.finish()


def counting(title: str, main: bool = True) -> Callable[[int, int, str], None]:
    """A function of (done, all, name) that shows how many of something are made.

    A line is drawn over itself on a terminal, a new one is written every half minute elsewhere; nothing is shown where
    nothing is to be done.

    Args:
        title: what is made.
        main: whether this process shows anything.
    """
    live, shown = sys.stderr.isatty(), [0.0]

    def show(done: int, count: int, name: str) -> None:
        now, last = time.monotonic(), done == count
        if not main or not count or not last and now - shown[0] < (_PAUSE if live else _FILE_PAUSE):
            return
        shown[0] = now
        end = "\n" if last or not live else ""
        start = "\r\033[K" if live else ""
        print(f"{start}{title} {done} of {count} {name}".rstrip(), end=end, file=sys.stderr, flush=True)

    return show


def check_tracker(name: str | None) -> None:
    """Refuse a tracker whose package is not here; UnsupportedError."""
    from importlib.util import find_spec

    if name is not None and find_spec(TRACKERS[name]) is None:
        raise UnsupportedError(f"report_to {name} needs the package {TRACKERS[name]}; pip install {TRACKERS[name]}")
