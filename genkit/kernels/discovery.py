"""Finds the implementations of an operator: the modules and folders of its ``impl`` package. No list is kept."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from genkit.errors import UsageError, explain


def implementations(impl: ModuleType) -> dict[str, ModuleType]:
    """The implementations in a package by name, in the order in which ``auto`` tries them.

    An implementation is a module or a folder with the operator's functions and a ``PRIORITY``: a number, the smallest
    is tried first, or None for one that runs only when asked for by name (an approximate or
    experimental one); these come last.
    """
    return _found(impl.__name__, tuple(impl.__path__))


@cache
def _found(package: str, path: tuple[str, ...]) -> dict[str, ModuleType]:
    names = (entry.name for entry in pkgutil.iter_modules(path))
    modules = {name: importlib.import_module(f"{package}.{name}") for name in names}
    last = float("inf")

    def place(name: str) -> tuple[float, str]:
        priority = modules[name].PRIORITY
        return (last if priority is None else priority), name

    return {name: modules[name] for name in sorted(modules, key=place)}


def automatic(found: dict[str, ModuleType]) -> list[str]:
    """Names of those that ``auto`` may choose, in its order."""
    return [name for name, module in found.items() if module.PRIORITY is not None]


def load(impl: ModuleType, name: str) -> ModuleType:
    """The implementation with a name.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    found = implementations(impl)
    if name not in found:
        raise UsageError(explain("backend", name, ("auto", *found)))
    return found[name]
