"""How the layers of a model are called by its authors, whose names LoRA files of other programs have.

``{}`` stands for a number, the same on both sides and in the same order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A layer of the authors, and the layers of Diffusers that stand for it.

    Args:
        original: its name there.
        ours: names in Diffusers; several where the authors' layer is one matrix that makes them all, in the order of
            its rows.
        sizes: rows of each of ``ours`` in proportion to each other.
        swapped: Diffusers has the two halves of the rows the other way round (scale before shift).
    """

    original: str
    ours: tuple[str, ...]
    sizes: tuple[int, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Originals:
    """The layers of one family.

    Args:
        family: its name.
        part: the pipeline's part that they belong to.
        layers: all of them.
        kohya_ours: Kohya's trainers use Diffusers' names, written with underscores, rather than the authors'.
    """

    family: str
    part: str
    layers: tuple[Layer, ...]
    kohya_ours: bool = False

    def of_original(self, name: str) -> tuple[Layer, tuple[str, ...]] | None:
        """The layer of an authors' name and its numbers; None for an unknown one."""
        return _find(self._dotted, name)

    def of_flat(self, name: str) -> tuple[Layer, tuple[str, ...]] | None:
        """The layer of an authors' name with underscores for dots."""
        return _find(self._flat, name)

    def of_ours(self, name: str) -> tuple[Layer, int, tuple[str, ...]] | None:
        """The layer of Diffusers' name, its place in it and its numbers."""
        return _find(self._ours, name)

    def of_ours_flat(self, name: str) -> tuple[Layer, int, tuple[str, ...]] | None:
        """The same for Diffusers' name with underscores for dots."""
        return _find(self._ours_flat, name)

    @functools.cached_property
    def _dotted(self) -> list[tuple[re.Pattern, tuple]]:
        return [(_pattern(layer.original), (layer,)) for layer in self.layers]

    @functools.cached_property
    def _flat(self) -> list[tuple[re.Pattern, tuple]]:
        return [(_pattern(layer.original, "_"), (layer,)) for layer in self.layers]

    @functools.cached_property
    def _ours(self) -> list[tuple[re.Pattern, tuple]]:
        return [(_pattern(name), (layer, place)) for layer, place, name in self._names()]

    @functools.cached_property
    def _ours_flat(self) -> list[tuple[re.Pattern, tuple]]:
        return [(_pattern(name, "_"), (layer, place)) for layer, place, name in self._names()]

    def _names(self) -> Iterator[tuple[Layer, int, str]]:
        for layer in self.layers:
            for place, name in enumerate(layer.ours):
                yield layer, place, name


def _pattern(name: str, dot: str = ".") -> re.Pattern:
    return re.compile(re.escape(name.replace(".", dot)).replace(r"\{\}", r"(\d{1,4})"))


def _find(table: list[tuple[re.Pattern, tuple]], name: str) -> tuple | None:
    for pattern, value in table:
        found = pattern.fullmatch(name)
        if found is not None:
            return (*value, found.groups())
    return None


def layer(original: str, *ours: str, sizes: Sequence[int] = (), swapped: bool = False) -> Layer:
    """A layer of the authors under its names in Diffusers."""
    return Layer(original, ours, tuple(sizes) or (1,) * len(ours), swapped)


def layers(originals: str, ours: str, names: dict[str, str]) -> tuple[Layer, ...]:
    """Layers below a common beginning: (beginning there, beginning in Diffusers, {name there: name in Diffusers})."""
    return tuple(layer(f"{originals}.{there}", f"{ours}.{here}") for there, here in names.items())


def same(*names: str) -> tuple[Layer, ...]:
    """Layers that Diffusers calls as their authors do."""
    return tuple(layer(name, name) for name in names)
