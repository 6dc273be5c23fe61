"""The command that trains something on a frozen model; what there is to train is found in this room."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from typing import NoReturn

from genkit.errors import UsageError, explain
from genkit.training import tasks
from genkit.training.engine.stages import exit_code
from genkit.training.tasks.kind import TaskKind


def kinds() -> dict[str, TaskKind]:
    """Name -> what can be trained: the ``KIND`` of every file of this room that has one."""
    names = sorted(found.name for found in pkgutil.iter_modules(tasks.__path__) if found.name != "run")
    modules = [importlib.import_module(f"{tasks.__name__}.{name}") for name in names]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


class _Parser(argparse.ArgumentParser):
    """Tells a wrong argument as every other error is told."""

    def error(self, message: str) -> NoReturn:
        """See :meth:`argparse.ArgumentParser.error`."""
        raise UsageError(f"{self.prog}: {message}; --help lists what it takes")


def main(description: str, arguments: list[str] | None = None, program: str | None = None) -> int:
    """The body of ``scripts/train_patch.py`` and ``genkit train weights``: the first argument names the method."""
    parser = _Parser(program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="method", required=True)
    makings = {name: kind.making() for name, kind in kinds().items()}
    for name, making in makings.items():
        making.add_arguments(commands.add_parser(name, help=f"weights of {name}"))

    def work() -> None:
        given = sys.argv[1:] if arguments is None else arguments
        if given and not given[0].startswith("-") and given[0] not in makings:
            raise UsageError(explain("method", given[0], sorted(makings)))
        options = parser.parse_args(given)
        makings[options.method].run(options)

    return exit_code(work)
