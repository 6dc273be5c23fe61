"""Tables of heads and layers that keep full attention, how they are chosen, and the recipes they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genkit.attention.method import Method
from genkit.errors import UsageError, explain
from genkit.pipelines.recipe_file import write_parts

#: Layer -> heads with full attention.
HeadTable = dict[int, tuple[int, ...]]


def full_heads(gates: Mapping[int, Sequence[float]], sparsity: float) -> HeadTable:
    """The heads with the largest gates, all layers together.

    Args:
        gates: layer -> a gate per head.
        sparsity: share of all heads that become sparse, 0 to 1; rounded to a number of heads. Of equal gates those of
            earlier layers and heads stay full.

    Raises:
        UsageError: a share outside of 0 to 1.
    """
    if isinstance(sparsity, bool) or not 0 <= sparsity <= 1:
        raise UsageError(explain("sparsity", sparsity, "a number from 0 to 1"))
    every = [(-float(gate), layer, head) for layer, row in gates.items() for head, gate in enumerate(row)]
    full = sorted(every)[: round((1 - sparsity) * len(every))]
    return {layer: tuple(sorted(head for _, at, head in full if at == layer)) for layer in gates}


def uniform_heads(gates: Mapping[int, Sequence[float]], sparsity: float) -> HeadTable:
    """As many full heads, the same number in every layer as far as that goes, the first heads of each: what a learned
    table is compared with."""
    level = {layer: [1 - head / len(row) for head in range(len(row))] for layer, row in gates.items()}
    return full_heads(level, sparsity)


def head_parts(table: HeadTable, heads: int) -> list[dict[str, str]]:
    """Schedules that together make the heads outside of a table sparse: layers with the same heads share one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for layer, full in sorted(table.items()):
        sparse = tuple(head for head in range(heads) if head not in full)
        if sparse:
            groups.setdefault(sparse, []).append(layer)
    found = []
    for sparse, layers in groups.items():
        part = {"layers": ",".join(map(str, layers))}
        if len(sparse) < heads:
            part["heads"] = ",".join(map(str, sparse))
        found.append(part)
    return found


def dense_layers(errors: Sequence[float], count: int) -> tuple[int, ...]:
    """The ``count`` layers with the largest errors, in order; of equal ones the earlier."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(errors):
        raise UsageError(explain("dense layers", count, f"a whole number from 0 to {len(errors)}"))
    return tuple(sorted(sorted(range(len(errors)), key=lambda layer: (-errors[layer], layer))[:count]))


def spread_layers(layers: int, count: int) -> tuple[int, ...]:
    """``count`` of the layers, the first one and evenly on: a choice without measuring (MASFormer has full attention in
    a few layers; which ones is for each model to find)."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= layers:
        raise UsageError(explain("dense layers", count, f"a whole number from 0 to {layers}"))
    return tuple(layers * at // count for at in range(count))


def write_recipe(
    path: Path, method: Method, parts: Sequence[Mapping[str, str]], model: Any, about: str, measured: Mapping[str, Any]
) -> Path:
    """Write a recipe that puts a method on parts of a model, and read it back.

    Args:
        path: ends in ``.yaml``; appears whole or not at all.
        parts: schedules; see :func:`head_parts`.
        model: the denoiser; its class, layers and heads are what the recipe is for.
        about: one line of what was chosen and how.
        measured: numbers that go with it.

    Raises:
        UsageError: nothing is left sparse.
    """
    return write_parts(path, [(method, part) for part in parts], type(model).__name__, model.config, about, measured)
