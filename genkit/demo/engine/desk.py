"""Where settings become results: one worker a device, which keeps the last model loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.demo.engine.job import DECODING, DONE, FAILED, LOADING, QUEUED, STEPS, STOPPED, WAITING, Job
from genkit.demo.engine.kept import kept
from genkit.demo.engine.memory import give_back
from genkit.demo.engine.messages import for_visitor, told
from genkit.demo.engine.preview import Preview
from genkit.demo.engine.visitors import Entry, Visitor
from genkit.errors import GenkitError, UsageError
from genkit.pipelines.following import DECODE, Interrupted
from genkit.pipelines.forecast import Forecast
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.record import FILES

if TYPE_CHECKING:
    import numpy as np

    from genkit.pipelines.request import Settings
    from genkit.pipelines.resolve import Request
    from genkit.pipelines.session import Result, Session

log = logging.getLogger("genkit.demo")
#: Seconds between two previews; a fast run is not slowed down by pictures that nobody sees.
BETWEEN = 0.25


@dataclass(frozen=True)
class Finished:
    """A result that is written.

    Args:
        path: the file, with its settings inside.
        command: the subcommand that makes such outputs.
        settings, seconds, fps, report: of the run, see :class:`genkit.pipelines.session.Result`.
        size: frames, height and width.
        sound: seconds of it; None without.
        kept: how much of its input is still there, see :func:`genkit.demo.engine.kept.kept`.
        frames: uint8 (T, H, W, 3) where they are compared, else None: a visitor's last results are remembered for an
            hour, and a clip's frames are large.
    """

    path: Path
    command: str
    settings: Any
    seconds: float
    size: tuple[int, int, int]
    fps: Any = None
    report: dict[str, Any] | None = None
    sound: float | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    frames: np.ndarray | None = None


class Worker:
    """One device: runs one job after the other and keeps the model of the last one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.preview: Preview | None = None

    def wait(self, job: Job) -> None:
        """Take the device for a job, whose turn comes when the one before has ended.

        Raises:
            Interrupted: the job was stopped before.
        """
        while not job.stopping():
            if self.lock.acquire(timeout=0.1):
                return
            if job.state.phase != QUEUED:
                job.tell(phase=QUEUED)
        raise Interrupted("the run was stopped before it began")

    @contextmanager
    def turn(self, job: Job) -> Iterator[None]:
        """Hold the device for a job. What fails there gives the model's memory back, and what broke is not used again;
        runs that were stopped or refused leave it.

        Raises:
            Interrupted: see :meth:`wait`.
        """
        self.wait(job)
        try:
            yield
        except (Interrupted, UsageError):
            raise
        except BaseException:
            self.free()
            raise
        finally:
            self.lock.release()

    def session_for(self, request: Request) -> Session:
        """A session whose model is loaded: the last one's when it serves, else a new one after the last is freed."""
        from genkit.pipelines.session import Session

        found = self.session.again(request) if self.session is not None else None
        if found is None:
            self.free()
            found = Session(request)
            found.load()
            self.preview = Preview.fit(found.pipeline, request.model.sidecar.sound)
        self.session = found
        return found

    def free(self) -> None:
        """Give the memory of the last model back."""
        if self.session is not None:
            self.session.close()
        self.session = self.preview = None


class Desk:
    """Takes requests of visitors and makes what they ask for, on a thread of each."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def worker(self, device: str) -> Worker:
        """The worker of a device."""
        with self._lock:
            return self._workers.setdefault(device, Worker())

    def start(self, visitor: Visitor, tab: str, wanted: Sequence[Settings], frames: bool = False) -> Job:
        """Begin to make what is wanted, one output for each settings.

        Args:
            visitor: who asked; results lie in their folder.
            tab: which tab asked.
            wanted: settings of any task.
            frames: whether the job remembers the frames, which are compared.
        """
        return self.begin(visitor, tab, lambda job: self._make(job, visitor, wanted, frames), wanted)

    def begin(self, visitor: Visitor, tab: str, work: Callable[[Job], None], wanted: Sequence[Any] = ()) -> Job:
        """Begin any work of a visitor, whose earlier one is stopped.

        Args:
            visitor, tab: who asked, and where.
            work: gets the job, tells what it is at, and heeds :meth:`Job.stopping`.
            wanted: what the job remembers of what was asked for.
        """
        if visitor.job is not None:
            visitor.job.stop()
        job = visitor.job = Job(tab, wanted)
        threading.Thread(target=_guarded, args=(job, work), name=f"genkit-demo-{tab}", daemon=True).start()
        return job

    def close(self) -> None:
        """Free every model."""
        for worker in self._workers.values():
            with worker.lock:
                worker.free()

    def _make(self, job: Job, visitor: Visitor, wanted: Sequence[Settings], frames: bool) -> None:
        from genkit.pipelines.resolve import resolve

        requests = [resolve(settings) for settings in wanted]
        notes = [line for request in requests for line in request.notes]
        job.tell(runs=len(requests), notes=_unique(notes))
        worker = self.worker(str(requests[0].device))
        with worker.turn(job):
            forecast = Forecast(len(requests))
            made: list[Finished] = []
            for number, request in enumerate(requests, 1):
                job.tell(phase=LOADING, run=number, step=0, preview=None)
                session = worker.session_for(request)
                if number == 1:
                    forecast.begin()
                follower = _Follower(job, forecast, worker.preview, request)
                result = session.run(progress=follower.progress, latents=follower.latents, stop=job.stopping)
                finished = write(visitor, result, request)
                made.append(replace(finished, frames=result.frames) if frames else finished)
                forecast.finished()
                notes += session.warnings
                job.tell(made=tuple(made), notes=_unique(notes), share=forecast.share, left=forecast.left())


def write(visitor: Visitor, result: Result, request: Request) -> Finished:
    """Write a result into the visitor's folder, settings inside, and remember it.

    Names of files that lie with the server are cut to their last part: a result may be given to anybody.
    """
    kind = request.model.kind
    still = kind is IMAGE or len(result.frames) == 1
    path = visitor.new_file(".png" if still else kind.suffix)
    result.record["settings"] = _without_places(result.record["settings"])
    result.write(path)
    command, settings = request.task.command, result.record["settings"]
    visitor.keep(Entry(path, caption_of(settings, result.seconds), command, settings))
    count, height, width = result.frames.shape[:3]
    sound = None if result.audio is None else len(result.audio) / (result.sample_rate or 1)
    return Finished(
        path, command, result.settings, result.seconds, (count, height, width), result.fps, result.report, sound,
        kept(request.inputs, result.frames),
    )  # fmt: skip


def caption_of(settings: dict[str, Any], seconds: float) -> str:
    """One line about a result for the gallery."""
    prompt = str(settings.get("prompt") or "")
    told = [f"{prompt[:60]}{'…' if len(prompt) > 60 else ''}"] if prompt else []
    told += [f"seed {settings['seed']}"] if settings.get("seed") is not None else []
    return " · ".join([*told, f"{seconds:.1f} s"])


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which files are named without their folders."""

    def plain(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    names = [name for name in FILES if settings.get(name)]
    changed = {name: settings[name] for name in names}
    return settings | {
        name: [plain(each) for each in value] if isinstance(value, list) else plain(value)
        for name, value in changed.items()
    }


class _Follower:
    """Tells a job what a session says."""

    def __init__(self, job: Job, forecast: Forecast, preview: Preview | None, request: Request):
        self.job, self.forecast, self.preview = job, forecast, preview
        self.picture: Any = None
        self.last = 0.0
        height, width, frames = (getattr(request.settings, name, None) for name in ("height", "width", "num_frames"))
        unknown = height is None or width is None
        self.grid = None if unknown else request.model.grid(frames or 1, int(height or 0), int(width or 0))

    def latents(self, latents: Any) -> None:
        """After a step; the picture is shown together with its number."""
        now = time.monotonic()
        if self.preview is not None and now - self.last >= BETWEEN:
            self.picture = self.preview(latents, self.grid)
            self.last = time.monotonic()

    def progress(self, phase: str, done: int, total: int) -> None:
        """The callback that a session calls."""
        if phase == DECODE:
            self.job.tell(phase=DECODING)
            return
        self.forecast.step(done, total)
        share, left = self.forecast.share, self.forecast.left()
        self.job.tell(phase=STEPS, step=done, steps=total, share=share, left=left, preview=self.picture)


def _guarded(job: Job, work: Callable[[Job], None]) -> None:
    """Run the work of a job; whatever happens, the job ends with a state that says what."""
    try:
        job.tell(phase=WAITING)
        work(job)
    except Interrupted:
        job.tell(phase=STOPPED, preview=None)
    except GenkitError as error:
        job.tell(phase=FAILED, message=told(error), preview=None)
    except Exception as error:  # a fault of genkit's: the visitor is told so, the server goes on
        log.error("%s in tab %s: %s", type(error).__name__, job.tab, for_visitor(str(error)))
        log.debug("the trace of it", exc_info=True)
        job.tell(phase=FAILED, message=told(error), preview=None)
    else:
        job.tell(phase=DONE, share=1.0, left=0.0, preview=None)
    finally:
        give_back()


def _unique(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(for_visitor(line) for line in lines))
