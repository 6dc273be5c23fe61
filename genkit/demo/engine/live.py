"""A video without end on the page: frames are shown at their rate while more are made, and the prompt can change."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.demo.engine.desk import write
from genkit.demo.engine.job import LOADING, STEPS, Job
from genkit.errors import UsageError
from genkit.pipelines.following import STEP, Interrupted
from genkit.pipelines.session import Result

if TYPE_CHECKING:
    from fractions import Fraction

    from genkit.demo.engine.desk import Worker
    from genkit.demo.engine.visitors import Visitor
    from genkit.pipelines.resolve import Request
    from genkit.pipelines.session import Session

#: Frames that one stream may hold until it is written.
MOST_BYTES = 2**29


def live(job: Job, visitor: Visitor, worker: Worker, settings: Any) -> None:
    """Make a stream and write what there is when it ends or is stopped.

    Args:
        job: is shown the frames; prompts that it hears are in force from the next chunk on.
        visitor: in whose folder the result lies. worker: the device's. settings: with ``stream`` and ``num_frames``.

    Raises:
        GenkitError: settings that cannot be, a model that does not stream. Interrupted: stopped before the first chunk.
    """
    from genkit.pipelines.resolve import resolve

    request = resolve(settings)
    check_room(request)
    job.tell(notes=tuple(request.notes))
    with worker.turn(job):
        job.tell(phase=LOADING)
        session = worker.session_for(request)
        made = _Made(job, request, float(request.settings.fps or 16))
        result = made.run(session)
        job.tell(made=(write(visitor, result, request),))


def check_room(request: Request) -> None:
    """Refuse more frames than one stream may hold.

    Raises:
        UsageError: too many.
    """
    asked = request.settings
    each = 3 * (asked.height or 480) * (asked.width or 832)
    if asked.num_frames * each > MOST_BYTES:
        raise UsageError(
            f"Frames: got {asked.num_frames}, allowed here at this size: up to {MOST_BYTES // each}; genkit generate "
            f"--stream has no end"
        )


@dataclass
class _Made:
    """A stream in the making.

    Args:
        job: who follows. request: what was asked for. fps: frames per second on the page.
        chunks: frames so far. changes: frame -> prompt in force from there on.
    """

    job: Job
    request: Request
    fps: float
    chunks: list[np.ndarray] = field(default_factory=list)
    changes: dict[int, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """How many there are."""
        return sum(len(chunk) for chunk in self.chunks)

    def run(self, session: Session) -> Result:
        """All frames, with the prompts as they were in force."""
        begun = time.perf_counter()
        chunks = session.stream(self.request.settings, self._progress, stop=self.job.stopping, turn=self._turn)
        with Player(self.job, self.fps) as player:
            try:
                for frames in chunks:
                    self.chunks.append(frames)
                    player.show(frames)
                    self._tell(time.perf_counter() - begun)
            except Interrupted:
                if not self.chunks:
                    raise
        return self._result(session, time.perf_counter() - begun)

    def _result(self, session: Session, seconds: float) -> Result:
        settings, changes = self.request.settings, dict(self.changes)
        settings = settings.replace(
            prompt=changes.pop(0, settings.prompt), num_frames=self.frames, then=tuple(changes.values()),
            at=tuple(map(str, changes)),
        )  # fmt: skip
        fps: Fraction = settings.fps
        return Result(np.concatenate(self.chunks), fps, seconds, settings, session.record(settings))

    def _turn(self, stream: Any) -> None:
        """Before every chunk: the prompt that was asked for meanwhile."""
        text = self.job.heard()
        if text is not None:
            stream.prompt = self.request.read(self.request.settings.replace(prompt=text)).prompt
            self.changes[stream.frames] = text

    def _progress(self, phase: str, done: int, total: int) -> None:
        if phase == STEP:
            self.job.tell(phase=STEPS, step=done, steps=total)

    def _tell(self, seconds: float) -> None:
        share = self.frames / self.request.settings.num_frames
        self.job.tell(share=share, left=seconds * (1 / share - 1))


class Player:
    """Shows frames at their rate on a thread of its own, while more are made. A context manager: at its end frames that
    were not shown yet are left out, for the whole video is there then.

    Args:
        job: whose preview the frames are. fps: frames per second.
    """

    def __init__(self, job: Job, fps: float):
        self.job, self.every = job, 1 / fps
        self._frames: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._play, name="genkit-demo-player", daemon=True)

    def show(self, frames: np.ndarray) -> None:
        """Add frames, uint8 (T, H, W, 3)."""
        for frame in frames:
            self._frames.put(frame)

    def _play(self) -> None:
        due = time.monotonic()
        while (frame := self._frames.get()) is not None:
            due = max(due, time.monotonic())
            if self._ended.wait(due - time.monotonic()):
                return
            self.job.tell(preview=frame)
            due += self.every

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._frames.put(None)
        self._thread.join()
