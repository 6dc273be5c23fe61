"""Plans: which setting of a method runs at which layer in which steps, and the best ones for every cost.

The predicted error of a plan is a sum over cells (a layer in a group of steps). Then the best plan of every cost is a
knapsack with one choice per cell; following the steepest descents of the cells' lower hulls gives it exactly at every
cost at which a choice changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genkit.attention.method import Method
from genkit.errors import UsageError

#: The choice that leaves a cell to the model's own attention.
DENSE = -1
Cell = tuple[int, int]  # layer, group of steps


@dataclass(frozen=True)
class Option:
    """What a setting costs and what it breaks in a cell, of the whole run.

    Args:
        cost: operations. error: predicted, as a share of the squared error of the output.
    """

    cost: float
    error: float


@dataclass(frozen=True)
class Plan:
    """A setting for every cell.

    Args:
        choices: cell -> index of the setting, :data:`DENSE` for none.
        cost, error: predicted sums over the cells.
    """

    choices: tuple[tuple[Cell, int], ...]
    cost: float
    error: float

    @property
    def dense(self) -> bool:
        """Whether nothing is patched."""
        return all(choice == DENSE for _, choice in self.choices)


def hull(options: Mapping[int, Option]) -> list[tuple[int, Option]]:
    """The options of a cell on the lower hull of error over cost, from the dearest to the cheapest."""
    ordered = sorted(options.items(), key=lambda item: (-item[1].cost, item[1].error))
    kept: list[tuple[int, Option]] = []
    for name, option in ordered:
        if kept and option.cost == kept[-1][1].cost:
            continue  # no cheaper and no better
        while kept and option.error <= kept[-1][1].error:
            kept.pop()  # cheaper and no worse
        while len(kept) > 1 and _slope(kept[-2][1], kept[-1][1]) >= _slope(kept[-1][1], option):
            kept.pop()
        kept.append((name, option))
    return kept


def _slope(dear: Option, cheap: Option) -> float:
    """Error that is added for each operation saved."""
    return (cheap.error - dear.error) / (dear.cost - cheap.cost)


def front(cells: Mapping[Cell, Mapping[int, Option]]) -> list[Plan]:
    """The best plans, from the one with the least error to the cheapest: none at its cost has a smaller predicted one.

    Args:
        cells: options of every cell, the dense one among them.
    """
    hulls = {cell: hull(options) for cell, options in cells.items()}
    current = {cell: 0 for cell in cells}
    steps = [
        (_slope(kept[at][1], kept[at + 1][1]), cell, at) for cell, kept in hulls.items() for at in range(len(kept) - 1)
    ]
    found = [_plan(hulls, current)]
    for _, cell, at in sorted(steps):
        current[cell] = at + 1
        found.append(_plan(hulls, current))
    return found


def _plan(hulls: Mapping[Cell, list[tuple[int, Option]]], current: Mapping[Cell, int]) -> Plan:
    chosen = {cell: hulls[cell][at] for cell, at in current.items()}
    choices = tuple(sorted((cell, name) for cell, (name, _) in chosen.items()))
    options = [option for _, option in chosen.values()]
    return Plan(choices, sum(each.cost for each in options), sum(each.error for each in options))


def step_groups(steps: int) -> list[tuple[int, int]]:
    """Ranges of steps that share their settings: shorter ones at the beginning, where attention decides the layout."""
    edges = sorted({0, *(round(share * steps) for share in (0.1, 0.25, 0.5)), steps})
    return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]


def parts_of(
    plan: Plan, methods: Sequence[Method], groups: Sequence[tuple[int, int]]
) -> list[tuple[Method, dict[str, str]]]:
    """The plan as methods with schedules, as few as possible: neighbouring groups of a layer are joined, layers
    with the same steps and setting share a part."""
    by_layer: dict[int, dict[int, list[int]]] = {}
    for (layer, group), choice in plan.choices:
        if choice != DENSE:
            by_layer.setdefault(layer, {}).setdefault(choice, []).append(group)
    together: dict[tuple[int, str], list[int]] = {}
    for layer, choices in sorted(by_layer.items()):
        for choice, members in choices.items():
            together.setdefault((choice, _ranges(sorted(members), groups)), []).append(layer)
    return [
        (methods[choice], {"layers": ",".join(map(str, layers)), "steps": steps})
        for (choice, steps), layers in sorted(together.items())
    ]


def _ranges(members: Iterable[int], groups: Sequence[tuple[int, int]]) -> str:
    """Ranges of steps of some groups, neighbours joined."""
    spans: list[list[int]] = []
    for group in members:
        start, stop = groups[group]
        if spans and spans[-1][1] == start:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    return ",".join(f"{start}:{stop}" for start, stop in spans)


def uniform(cells: Mapping[Cell, Mapping[int, Option]], choice: int, groups: Iterable[int] | None = None) -> Plan:
    """One setting everywhere, or in some groups of steps."""
    wanted = None if groups is None else set(groups)
    chosen = {cell: choice if wanted is None or cell[1] in wanted else DENSE for cell in cells}
    missing = [cell for cell, name in chosen.items() if name not in cells[cell]]
    if missing:
        raise UsageError(f"setting {choice} was not measured at layer {missing[0][0]}")
    options = [cells[cell][name] for cell, name in chosen.items()]
    return Plan(tuple(sorted(chosen.items())), sum(o.cost for o in options), sum(o.error for o in options))


def patched(parts: Sequence[tuple[Method, dict[str, str]]]) -> list[Any]:
    """Parts for :func:`genkit.patch`."""
    from genkit.patching import Part, Schedule

    return [Part(method, Schedule(**schedule)) for method, schedule in parts]
