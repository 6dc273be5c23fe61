"""A kind of run as an object, and how the kinds are found: every file or folder under ``genkit/pipelines/tasks``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError
from genkit.pipelines.request import Settings

if TYPE_CHECKING:
    import numpy as np

    from genkit.pipelines.resolve import Request
    from genkit.pipelines.session import Run

GENERATE = "generate"


@dataclass(frozen=True)
class Made:
    """What one run made.

    Args:
        frames: uint8 (T, H, W, 3); T is 1 for an image.
        audio: float32 samples (S, channels), or None.
        sample_rate: of ``audio``.
        report: what the attention patch really did, as plain values; None without one.
        fps: exact frames per second, where they are not the settings'.
    """

    frames: np.ndarray
    audio: np.ndarray | None = None
    sample_rate: int | None = None
    report: dict[str, Any] | None = None
    fps: Fraction | None = None


@dataclass(frozen=True)
class Task:
    """A kind of run.

    Args:
        name: as its file or folder is called.
        settings: the settings it takes; also what tells it from tasks of other commands.
        resolve: turns settings into a request of objects: everything is checked, no weights are read.
        run: makes one output with the loaded model.
        asked_by: the flag by which settings ask for this task among those of its command, None when they do not.
            A command has one task without it, which does what no other is asked for.
        command: the subcommand it belongs to.
        help: what the subcommand makes, one line; of the command's task without ``asked_by``.
        argument: the setting that is the subcommand's argument: its ``prompt``, or the ``image`` it works on.
        usual: which model runs when none is named, for ``--help``.
        check: refuses a prompt that does not go with the other settings (:class:`UsageError`); asked for every output
            before the first is made.
        named: from the file that is worked on to the model, where none is named; None where the settings' own default
            is it.
        stream: hands out the frames of one output as they are made, uint8 (T, H, W, 3) each; None where they come at
            once.
        weighs: puts the rules of word weights (:attr:`genkit.pipelines.session.Run.rules`) on the model itself.
        roles: what the files that settings name are for, by setting; ``--explain`` tells it. Those of ``generate``
            depend on the model, see :func:`genkit.pipelines.routes.route_of`.
        several: the setting that lists further prompts, one output each; None where the prompt is the only one.
    """

    name: str
    settings: type[Settings]
    resolve: Callable[[Any], Request]
    run: Callable[[Run], Made]
    asked_by: Callable[[Any], str | None] | None = None
    command: str = GENERATE
    help: str = ""
    argument: str = "prompt"
    usual: str = "toy-video"
    roles: Mapping[str, str] = field(default_factory=dict)
    several: str | None = None
    weighs: bool = False
    stream: Callable[[Run], Iterator[Any]] | None = None
    check: Callable[[Any], None] | None = None
    named: Callable[[str | None], str] | None = None

    def model_of(self, given: Mapping[str, Any]) -> str:
        """The model that settings ask for, all of them or those that were given."""
        usual = self.settings.__dataclass_fields__["model"].default
        own = "" if self.named is None else self.named(given.get("image"))
        return str(given.get("model") or usual or own)


@cache
def tasks() -> tuple[Task, ...]:
    """Every task, by name. Its file must import nothing heavy: all are read for ``genkit --help``."""
    import genkit.pipelines.tasks as room

    found = []
    for entry in sorted(pkgutil.iter_modules(room.__path__), key=lambda each: each.name):
        place = f"{room.__name__}.{entry.name}"
        found.append(importlib.import_module(f"{place}.task" if entry.ispkg else place).TASK)
    return tuple(found)


def commands() -> dict[str, Task]:
    """The task that stands for each subcommand, by the subcommand's name."""
    return {task.command: task for task in tasks() if task.asked_by is None}


def task_of(settings: Settings) -> Task:
    """The task that settings ask for.

    Raises:
        UsageError: they ask for two at once.
    """
    fitting = [task for task in tasks() if task.settings is type(settings)]
    asked = [(task.asked_by(settings), task) for task in fitting if task.asked_by is not None]
    asked = [(flag, task) for flag, task in asked if flag is not None]
    if len(asked) > 1:
        raise UsageError(f"{asked[0][0]} and {asked[1][0]} exclude each other; leave one out")
    usual = [task for task in fitting if task.asked_by is None]
    if not asked and not usual:
        raise UsageError(f"no task takes {type(settings).__name__}; see genkit/pipelines/tasks")
    return asked[0][1] if asked else usual[0]
