"""Settings in a file that somebody gives: they must be such as a command takes before the page shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genkit.demo.engine.pictures import UPLOAD
from genkit.errors import UsageError, explain
from genkit.pipelines.record import read_record
from genkit.pipelines.task import GENERATE, tasks


def stored_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The command that made a file, and its settings.

    Raises:
        UsageError: no file, a larger one than is read, or settings that the command does not take.
        ArtifactError: it holds no settings.
    """
    if not path.is_file() or path.stat().st_size > UPLOAD:
        raise UsageError(f"give a file that genkit made, of at most {UPLOAD >> 20} MB")
    record = read_record(path)
    kinds = {task.command: task.settings for task in tasks() if task.asked_by is None}
    command = record.command or GENERATE  # other programs' records name none
    if command not in kinds:
        raise UsageError(explain("command of the file", command, list(kinds)))
    kinds[command].from_mappings(stored=(f"the settings in {path.name}", record.settings))
    return command, kinds[command].completed(record.settings)
