"""Tables of rows: methods down, kinds of cases across, one table a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.editing.store import Row, Store, measure, weights_of
from benchmarks.environment import RESULTS, environment, machine_line, table, write_results
from genkit.reading import whole

#: Title of a table, and what stands in a row's cell.
Part = tuple[str, Callable[[Row], str]]


def add_common(parser: argparse.ArgumentParser, cases: int) -> None:
    """Options that all benchmarks of editing have."""
    parser.add_argument("--model", default="toy-image")
    parser.add_argument("--cases", type=int, default=cases, help=f"of every kind (default {cases})")
    parser.add_argument("--first", type=int, default=0, help="first case, for tuning on other cases than the reported")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the methods")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=whole(1))
    parser.add_argument("--sheets", type=Path, help="folder for pictures before, after and truth of every row")
    parser.add_argument("--output", type=Path, default=RESULTS)


def begun(options: argparse.Namespace, name: str) -> tuple[Any, bool, Store]:
    """The model loaded as the options say, whether it makes clips, and the results so far."""
    import torch

    from benchmarks.editing.editors import load

    if options.threads:
        torch.set_num_threads(options.threads)
    pipeline, clips = load(options.model, options.dtype)
    store = Store(options.output / f"{name}.json")
    store.facts = environment()
    return pipeline, clips, store


def measured(
    options: argparse.Namespace,
    name: str,
    store: Store,
    text: Callable[[Store], str],
    method: tuple[str, str, dict[str, Any]],
    cases: Sequence[Any],
    run: Callable[[Any, int], Any],
    judge: Callable[[Any, Any], dict[str, float]],
    sheet: Callable[[Any, dict[int, Any], Row, Path], None],
) -> None:
    """Measure one row, saved as it grows, and draw its sheet where one is asked for.

    Args:
        options, name: of the benchmark.
        store, text: the results, and the report of them.
        method: kind of the cases, name of the row, its settings.
        cases, run, judge: see :func:`benchmarks.editing.store.measure`.
        sheet: draws (cases, outputs, row, path).
    """
    kind, title, settings = method
    from genkit.models.registry import locate

    told = {**settings, "dtype": options.dtype, "first": options.first}
    row = store.row(options.model, kind, title, told, weights_of(locate(options.model).path))
    at = f"{store.facts['commit']} on {store.facts['gpu'] or store.facts['cpu']}"
    outputs = measure(row, cases, run, judge, lambda: save(name, store, text(store), options.output), at=at)
    if options.sheets:
        sheet(cases, outputs, row, options.sheets / f"{row.key.replace('/', '-').replace(' ', '-')}.png")


def save(name: str, store: Store, text: str, folder: Path) -> None:
    """Write the results whole."""
    write_results(name, store.data(), text, folder)


def report(title: str, store: Store, told: str, parts: Sequence[Part], order: Sequence[str]) -> str:
    """The text of all rows, model by model.

    Args:
        title: of the report.
        store: its rows.
        told: what was measured.
        parts: the tables; those without a value are left out.
        order: of the methods.
    """
    lines = [f"# {title}", "", machine_line(store.facts), told, ""]
    for model in dict.fromkeys(row.model for row in store.rows.values()):
        rows = [row for row in store.rows.values() if row.model == model and row.count]
        precision = ", ".join(sorted({str(row.settings.get("dtype")) for row in rows}))
        lines += [f"## {model}, {precision}", "", *_tables(rows, parts, order), *_origins(rows)]
    return "\n".join(lines)


def _origins(rows: Sequence[Row]) -> list[str]:
    """With which code and weights, and where, which rows were measured."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        where = f"{', '.join(row.at) or 'an earlier commit'}, weights {row.weights or 'of that time'}"
        found.setdefault(where, {}).setdefault(row.method, []).append(row.kind)
    lines = ["Measured at:", ""]
    for where, methods in found.items():
        lines.append(f"- {where}: " + "; ".join(f"{method} ({', '.join(kinds)})" for method, kinds in methods.items()))
    return [*lines, ""]


def _tables(rows: Sequence[Row], parts: Sequence[Part], order: Sequence[str]) -> list[str]:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    places = {name: number for number, name in enumerate(order)}
    methods = sorted({row.method for row in rows}, key=lambda name: places.get(name, len(places)))
    found = {(row.method, row.kind): row for row in rows}
    lines = []
    for title, cell in parts:
        body = []
        for method in methods:
            cells = {kind: cell(found[method, kind]) if (method, kind) in found else "" for kind in kinds}
            counts = sorted({found[method, kind].count for kind in kinds if (method, kind) in found})
            spread = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
            if any(cells.values()):
                body.append({"method": method, "cases": spread, **cells})
        if body:
            lines += [f"### {title}", "", table(body), ""]
    return lines


def share(name: str) -> Callable[[Row], str]:
    """Cell of a share in percent with its standard error."""

    def cell(row: Row) -> str:
        from genkit.evaluation.shares import share_of

        values = row.values(name)
        return share_of(values).percent if values else ""

    return cell


def mean(name: str, digits: int = 1) -> Callable[[Row], str]:
    """Cell of a mean with its standard error."""

    def cell(row: Row) -> str:
        from genkit.evaluation.shares import mean_of

        values = row.values(name)
        if not values:
            return ""
        found = mean_of(values)
        return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}"

    return cell


def percents(*names: str) -> Callable[[Row], str]:
    """Cell of several shares in percent."""

    def cell(row: Row) -> str:
        columns = [row.values(name) for name in names]
        return " / ".join(f"{100 * sum(each) / len(each):.0f}" for each in columns) if all(columns) else ""

    return cell
