"""Whether the schedules of a patch fit what the sampling loop turns out to be."""

from __future__ import annotations

from collections.abc import Iterable

from genkit.errors import UsageError
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.step_tracker import Moment


class LoopCheck:
    """Looks at every denoiser call of a patch; remembers which branches a run has announced."""

    def __init__(self, schedules: Iterable[Schedule]):
        self._schedules = tuple(schedules)
        self._run: int | None = None
        self._announced: set[str | None] = set()

    def check(self, moment: Moment) -> None:
        """UsageError for steps beyond the step count and for branches that never come."""
        if moment.aside:
            return
        if self._run != moment.run:
            self._run = moment.run
            self._announced = set()
        for schedule in self._schedules:
            _check_steps(schedule, moment)
            _check_branches(schedule, moment, self._announced)
        self._announced.add(moment.branch)


def _check_steps(schedule: Schedule, moment: Moment) -> None:
    if schedule.steps is None:
        return
    if moment.step is None:
        raise UsageError("the schedule names steps, but training has no sampling steps; leave steps out of it")
    if moment.steps is not None:
        resolve("steps", schedule.steps, moment.steps)
    elif any(span.start < 0 or (span.stop is not None and span.stop < 0) for span in schedule.steps):
        raise UsageError(
            f"the schedule ({schedule}) counts steps from the end, but nobody tells how many there are: give "
            f"total_steps= to genkit.patch, or patch the pipeline instead of the bare denoiser"
        )


def _check_branches(schedule: Schedule, moment: Moment, announced: set[str | None]) -> None:
    """A branch that never comes is an error: at once when calls cannot be told apart, else after the first step."""
    names = schedule.branches
    if not names or moment.branch in names or announced & names:
        return
    if moment.branch is not None and not moment.step and moment.branch != "cond_uncond":
        return
    seen = ", ".join(sorted({str(name) for name in (*announced, moment.branch) if name is not None})) or "nothing"
    raise UsageError(
        f"the schedule names branches {', '.join(sorted(names))}, but the calls of this model are announced as {seen}; "
        f"choose among these or leave branches out of the schedule"
    )
