"""Finds the implementations of an operator: the modules and folders of its ``impl`` package. No list is kept."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from torch import Tensor

from genkit.errors import UnsupportedError, UsageError, explain


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


class Backends:
    """The backends of one operator whose ``why_not`` asks about tensors alone.

    Args:
        impl: the package of its implementations. operator: what errors call it.
    """

    def __init__(self, impl: ModuleType, operator: str) -> None:
        self.found, self.operator = implementations(impl), operator

    def names(self) -> tuple[str, ...]:
        """In the order ``auto`` tries them."""
        return tuple(self.found)

    def __getitem__(self, name: str) -> ModuleType:
        """Raises a UsageError with the names that exist where there is none of this name."""
        if name not in self.found:
            raise UsageError(explain("backend", name, ("auto", *self.found)))
        return self.found[name]

    def why_not(self, name: str, *inputs: Tensor) -> str | None:
        """None when a backend can run these inputs, otherwise the reason why not."""
        return self[name].why_not(*inputs)

    def choose(self, name: str, *inputs: Tensor) -> str:
        """The name of the backend that runs: the one asked for, or with ``"auto"`` the first that can.

        Raises:
            UsageError: there is none of this name. UnsupportedError: it cannot run these inputs; the message says why.
        """
        if name == "auto":
            # Off a GPU Triton is its interpreter, for tests: far too slow to be chosen on its own.
            fused = inputs[0].device.type == "cuda"
            asked = [one for one in automatic(self.found) if fused or one != "triton"]
            return next(one for one in asked if self.why_not(one, *inputs) is None)
        if reason := self.why_not(name, *inputs):
            raise UnsupportedError(f"{self.operator} backend {name!r}: {reason}")
        return name
