"""One page of plots of what was seen of a run's attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from genkit.attention.draw import QUERY, SEEN
from genkit.errors import counted
from genkit.evaluation.charts import FIRST, LAST, Axis, Series, between, heat, page, plot
from genkit.evaluation.inspection.result import AttentionLook, StepLook

PANEL = (500, 340)
#: Colour of what should be large, and of what should be small.
GOOD, BAD = SEEN, QUERY


def draw(look: AttentionLook, title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Distances and sparsity of the attention, and below, a row for each method that was compared.

    Args:
        look: with distances. title, notes: above it.
    """
    rows = [_distances(look), _sparsity(look), *(_method(look, name) for name in look.methods)]
    return page(title, [*notes, _told(look)], [row for row in rows if row])


def _told(look: AttentionLook) -> str:
    grids = dict.fromkeys(f"{' x '.join(map(str, site.grid))}" for site in look.sites)
    steps = sorted({each.step for site in look.sites for each in site.steps if each.step is not None})
    at = f"steps {', '.join(map(str, steps))}" if steps else "outside of a sampling loop"
    return (
        f"{counted(len(look.sites), 'layer')}, grid {', '.join(grids)}; {at}; at most {look.queries} sampled "
        "queries a call; "
        f"lines from light to dark: first to last layer"
    )


def _labels(look: AttentionLook) -> list[str]:
    """Numbers of the layers; where roles share numbers, the place in the list."""
    numbers = [site.layer for site in look.sites]
    return [str(n) for n in (numbers if len(set(numbers)) == len(numbers) else range(len(numbers)))]


def _lines(look: AttentionLook, axis: str) -> list[Series]:
    found = []
    for number, site in enumerate(look.sites):
        even = getattr(site, f"even_{axis}")
        mass = np.mean([getattr(each, axis).mean(0) for each in site.steps], 0)
        outside = np.mean([sum(v.mean() for v in each.outside.values()) for each in site.steps])
        ratio = np.divide(mass / max(1e-12, 1 - outside), even, out=np.full_like(mass, np.nan), where=even > 0)
        colour = between(FIRST, LAST, number / max(1, len(look.sites) - 1))
        found.append(Series(range(len(ratio)), ratio.tolist(), colour))
    return found


def _distances(look: AttentionLook) -> list[Image.Image]:
    guide = [("every token weighs the same", 1.0)]
    times = Axis("times its even share", log=True)
    found = []
    if any(site.grid[0] > 1 for site in look.sites):
        note = "mass on the grid by distance in time, mean over heads and steps"
        found.append(plot(PANEL, "Frames apart", note, _lines(look, "temporal"), Axis("frames apart"), times, guide))
    note = "mass on the grid by distance within the frame, whatever the frame"
    axis = Axis("tokens apart (Euclidean)")
    found.append(plot(PANEL, "Tokens apart", note, _lines(look, "spatial"), axis, times, guide))
    largest = max((site.grid for site in look.sites), key=np.prod)
    both = np.mean([site.both for site in look.sites if site.grid == largest], 0)
    note = "share of all mass, mean over layers, heads and steps"
    columns = [str(n) for n in range(both.shape[1])]
    rows = [str(n) for n in range(both.shape[0])]
    axes = ("frames apart", "tokens apart within the frame")
    found.append(heat(PANEL, "Both distances", note, both, rows, columns, axes))
    return found


def _by_step(look: AttentionLook, value: Callable[[StepLook], Any]) -> tuple[np.ndarray, list[str]]:
    """(layers, steps) of a number of each, and the steps' names."""
    steps = list(dict.fromkeys(each.step for site in look.sites for each in site.steps))
    steps.sort(key=lambda step: -1 if step is None else step)
    table = np.full((len(look.sites), len(steps)), np.nan)
    for row, site in enumerate(look.sites):
        for each in site.steps:
            found = value(each)
            if found is not None:
                table[row, steps.index(each.step)] = found
    return table, ["-" if step is None else str(step) for step in steps]


def _by_head(look: AttentionLook, value: Callable[[StepLook], Any]) -> tuple[np.ndarray, list[str]]:
    """(layers, heads) of a number of each, the mean over steps."""
    heads = max(site.heads for site in look.sites)
    table = np.full((len(look.sites), heads), np.nan)
    for row, site in enumerate(look.sites):
        found = [values for each in site.steps if (values := value(each)) is not None]
        if found:
            table[row, : len(found[0])] = np.mean(found, 0)
    return table, [str(head) for head in range(heads)]


def _sparsity(look: AttentionLook) -> list[Image.Image]:
    rows = _labels(look)
    share = next(iter(look.sites[0].steps[0].keys))
    table, heads = _by_head(look, lambda each: each.keys[share])
    note = f"smallest share of the keys that holds {share:.0%} of a query's mass"
    found = [heat(PANEL, "Sparsity of heads", note, table, rows, heads, ("layer", "head"), high=1.0)]
    table, steps = _by_step(look, lambda each: each.keys[share].mean())
    found.append(heat(PANEL, "Sparsity by step", note, table, rows, steps, ("layer", "step"), high=1.0))
    if any(site.grid[0] > 1 for site in look.sites):
        table, steps = _by_step(look, lambda each: each.temporal[:, 0].mean())
        note = "share of a query's mass on its own frame, mean over heads"
        found.append(heat(PANEL, "Own frame", note, table, rows, steps, ("layer", "step"), high=1.0))
    return found


def _method(look: AttentionLook, name: str) -> list[Image.Image]:
    rows = _labels(look)
    computed, _ = look.density(name)
    short = name if len(name) <= 44 else f"{name[:40]} ..."
    dense = "" if computed is None else f" of dense attention's mass; {computed:.0%} of the pairs"

    def of(each: StepLook, part: str) -> Any:
        found = each.methods.get(name)
        return None if found is None else getattr(found, part)

    def kept(each: StepLook) -> float | None:
        recall = of(each, "recall")
        return None if recall is None else float(recall.mean())

    found = []
    if look.recall(name) is not None:
        table, steps = _by_step(look, kept)
        title, told = f"Mass kept by {short}", f"mean {look.recall(name):.1%}{dense}"
        found.append(heat(PANEL, title, told, table, rows, steps, ("layer", "step"), high=1.0))
        table, heads = _by_head(look, lambda each: of(each, "recall"))
        found.append(
            heat(PANEL, "The same by head", "mean over steps", table, rows, heads, ("layer", "head"), high=1.0)
        )
    table, steps = _by_step(look, lambda each: of(each, "error"))
    note = f"|method - dense| / |dense| of the layer's output, mean {look.error(name):.3f}"
    title = f"Error of {short}"
    found.append(heat(PANEL, title, note, table, rows, steps, ("layer", "step"), colour=BAD, percent=False))
    return found


def site_table(look: AttentionLook) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table that is printed."""
    rows = look.rows()
    columns = list(rows[0])
    return columns, [[_cell(name, row[name]) for name in columns] for row in rows]


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3f}" if name.startswith("error") else f"{value:.1%}"
