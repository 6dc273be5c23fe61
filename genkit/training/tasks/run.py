"""The command that trains something on a frozen model; what there is to train is found in this room."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from genkit.errors import UsageError, explain
from genkit.training import tasks
from genkit.training.engine.loop import process_rank
from genkit.training.engine.stages import OneLineParser, exit_code
from genkit.training.tasks.kind import REPORT, TaskKind


def kinds() -> dict[str, TaskKind]:
    """Name -> what can be trained: the ``KIND`` of every file of this room that has one."""
    names = sorted(found.name for found in pkgutil.iter_modules(tasks.__path__) if found.name != "run")
    modules = [importlib.import_module(f"{tasks.__name__}.{name}") for name in names]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


def train_weights(description: str, arguments: list[str], program: str | None = None) -> Path | None:
    """Train what the first argument names, with the options that follow it.

    Args:
        description: of the help.
        arguments: of the command line.
        program: its name in help and errors; the script's own when None.

    Returns:
        The report of the run, ``training.json`` beside the file of weights; None in all processes but the first.

    Raises:
        UsageError: a wrong argument.
    """
    parser = OneLineParser(program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="method", required=True)
    found = kinds()
    makings = {name: kind.making() for name, kind in found.items()}
    for name, making in makings.items():
        making.add_arguments(commands.add_parser(name, help=found[name].summary, description=found[name].summary))
    if arguments and not arguments[0].startswith("-") and arguments[0] not in makings:
        raise UsageError(explain("method", arguments[0], sorted(makings)))
    options = parser.parse_args(arguments)
    makings[options.method].run(options)
    report = found[options.method].folder(options) / REPORT
    return report if process_rank() == 0 else None


def main(description: str, arguments: list[str] | None = None, program: str | None = None) -> int:
    """The body of ``scripts/train_patch.py``: :func:`train_weights`, errors told in a line and an exit code."""

    def work() -> None:
        train_weights(description, sys.argv[1:] if arguments is None else arguments, program)

    return exit_code(work)
