"""What other installed packages offer to genkit: entry points of a group, found without importing any of them.

A package says in its ``pyproject.toml`` what it has; genkit reads these lines when names are first asked for, and
imports a package only when what it offers is used. Whatever is wrong with one package is told with the package's name
and keeps nothing else from working.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError, escaped, shortened

METHODS, FAMILIES, MODELS = "genkit.methods", "genkit.families", "genkit.models"


class PluginError(GenkitError):
    """Another package offers something that cannot be used; the message names the package."""


class PluginWarning(UserWarning):
    """Another package offers something that is left out; the message names the package and the reason."""


@dataclass(frozen=True)
class Plugin:
    """One entry point of another package.

    Args:
        name: what it is called.
        entry: the entry point.
    """

    name: str
    entry: EntryPoint

    @property
    def owner(self) -> str:
        """The package and its version, for messages."""
        package = self.entry.dist
        return f"package {package.name} {package.version}" if package is not None else "an unnamed package"

    def __str__(self) -> str:
        return f"{self.owner} ({self.entry.group}: {self.name} = {self.entry.value})"

    def owns(self, module: str) -> bool:
        """Whether a module of this name is the plug-in's own: both have the same top-level package."""
        return module.partition(".")[0] == self.entry.module.partition(".")[0]

    def folder(self) -> Path:
        """The folder of the module that the entry point names, without importing it.

        Raises:
            PluginError: there is no such module, or it is no package with a folder.
        """
        try:
            spec = find_spec(self.entry.module)
        except (ImportError, ValueError) as error:
            raise PluginError(f"{self} cannot be found: {shortened(escaped(str(error)))}") from error
        places = None if spec is None else spec.submodule_search_locations
        if not places:
            raise PluginError(f"{self} names no package with a folder; mend or uninstall the package")
        return Path(next(iter(places)))

    def load(self) -> Any:
        """What the entry point names.

        Raises:
            PluginError: the import fails, whatever it raises.
        """
        try:
            return self.entry.load()
        except Exception as error:  # code of others may raise anything, and genkit must go on
            what = f"{type(error).__name__}: {shortened(escaped(str(error)))}"
            raise PluginError(f"{self} cannot be loaded: {what}; mend or uninstall the package") from error


@functools.cache
def found(group: str) -> dict[str, Plugin]:
    """Name -> plug-in of a group, by name. Imports none of them; takes some 20 ms the first time.

    A name that two packages offer is left out with a warning: which one counts would depend on the order in which they
    were installed.
    """
    offered: dict[str, list[Plugin]] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        same = offered.setdefault(entry.name, [])
        if entry.value not in [plugin.entry.value for plugin in same]:
            same.append(Plugin(entry.name, entry))
    for name, plugins in offered.items():
        if len(plugins) > 1:
            left_out(f"{' and '.join(map(str, plugins))} both offer {name!r}: neither is used, uninstall one")
    return {name: plugins[0] for name, plugins in offered.items() if len(plugins) == 1}


def left_out(reason: object) -> None:
    """Warn that something of another package is not used."""
    warnings.warn(str(reason), PluginWarning, stacklevel=3)
