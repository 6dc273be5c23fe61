"""The command that trains something on a frozen model; what there is to train is found in this room."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

from genkit.training import tasks
from genkit.training.engine.stages import exit_code
from genkit.training.tasks.kind import TaskKind


def kinds() -> dict[str, TaskKind]:
    """Name -> what can be trained: the ``KIND`` of every file of this room that has one."""
    names = sorted(found.name for found in pkgutil.iter_modules(tasks.__path__) if found.name != "run")
    modules = [importlib.import_module(f"{tasks.__name__}.{name}") for name in names]
    return {module.KIND.name: module.KIND for module in modules if hasattr(module, "KIND")}


def main(description: str, arguments: list[str] | None = None, program: str | None = None) -> int:
    """The body of ``scripts/train_patch.py`` and ``genkit train weights``: the first argument names the method."""
    parser = argparse.ArgumentParser(
        program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="method", required=True)
    makings = {name: kind.making() for name, kind in kinds().items()}
    for name, making in makings.items():
        making.add_arguments(commands.add_parser(name, help=f"weights of {name}"))
    options = parser.parse_args(arguments)
    return exit_code(lambda: makings[options.method].run(options))
