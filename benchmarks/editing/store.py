"""Results case by case: kept while a run goes on, so that one that is stopped keeps what it has and goes on later."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.toy_common import tell


@dataclass
class Row:
    """What was measured of one method on the cases of one kind.

    Args:
        model, kind, method: what was measured.
        settings: of the method; a row of other settings is measured anew.
        cases: attribute -> value of every case so far, in order; flags are 0 or 1.
        weights: what tells the model's weights from others, see :func:`weights_of`; a row of others is measured anew.
        at: where and with which code, one text for every run that added cases.
    """

    model: str
    kind: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[float]] = field(default_factory=dict)
    weights: str = ""
    at: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Name of the row in a file."""
        return f"{self.model}/{self.kind}/{self.method}"

    @property
    def count(self) -> int:
        """Cases so far."""
        return len(next(iter(self.cases.values()), []))

    def add(self, values: dict[str, float]) -> None:
        """Append one case; attributes that a case lacks are NaN in it."""
        count = self.count
        for name in {*self.cases, *values}:
            self.cases.setdefault(name, [float("nan")] * count).append(float(values.get(name, float("nan"))))

    def values(self, name: str, cases: Iterable[int] | None = None) -> list[float]:
        """Values of an attribute, of some cases, without those that lack it."""
        column = self.cases.get(name, [])
        chosen = column if cases is None else [column[i] for i in cases if i < len(column)]
        return [value for value in chosen if value == value]


class Store:
    """The rows of one result file.

    Args:
        path: JSON file; rows that it has are taken up.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, Row] = {}
        self.facts: dict[str, Any] = {}
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            self.facts = data["environment"]
            for each in data["rows"]:
                cases = {name: _unpack(text) for name, text in each.pop("cases").items()}
                row = Row(**each, cases=cases)
                self.rows[row.key] = row

    def row(self, model: str, kind: str, method: str, settings: dict[str, Any], weights: str = "") -> Row:
        """The row so far, empty where there is none or its settings or weights were others."""
        fresh = Row(model, kind, method, settings, weights=weights)
        kept = self.rows.get(fresh.key)
        if kept is None or (kept.settings, kept.weights) != (settings, weights):
            self.rows[fresh.key] = kept = fresh
        return kept

    def data(self) -> dict[str, Any]:
        """For the result file: one line of text per attribute of a row."""
        rows = [
            {
                "model": row.model, "kind": row.kind, "method": row.method, "settings": row.settings,
                "weights": row.weights, "at": row.at, "cases": {n: _pack(values) for n, values in row.cases.items()},
            }
            for row in self.rows.values() if row.count
        ]  # fmt: skip
        return {"environment": self.facts, "rows": rows}


def _pack(values: Sequence[float]) -> str:
    """Flags as 0110, other numbers with two decimals between blanks. What is read back is written alike."""
    values = [round(value, 2) for value in values]
    if all(value in (0.0, 1.0) for value in values):
        return "".join(str(int(value)) for value in values)
    return " ".join(f"{value:.2f}" for value in values)


def _unpack(text: str) -> list[float]:
    if " " in text or "." in text or "nan" in text:
        return [float(value) for value in text.split()]
    return [float(value) for value in text]


def weights_of(folder: Path) -> str:
    """Eight signs of a hash over a model's weight files, their names and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:8]


def measure(
    row: Row,
    cases: Sequence[Any],
    run: Callable[[Any, int], Any],
    judge: Callable[[Any, Any], dict[str, float]],
    save: Callable[[], None],
    every: int = 10,
    at: str = "",
) -> dict[int, Any]:
    """Run a method over the cases that a row still lacks.

    Args:
        row: is filled in place.
        cases: all of one kind, in order.
        run: makes the output of a case from its number.
        judge: attributes of an output.
        save: called after every ``every`` cases and at the end.
        every: see there.
        at: where and with which code.

    Returns:
        Number of the case -> output, of the cases run now.
    """
    outputs = {}
    if row.count < len(cases) and at and at not in row.at:
        row.at.append(at)
    for number in range(row.count, len(cases)):
        wall, cpu = time.perf_counter(), time.process_time()
        output = run(cases[number], number)
        spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        row.add(spent | judge(cases[number], output))
        outputs[number] = output
        tell(row.key, number + 1, len(cases))
        if (number + 1) % every == 0 or number + 1 == len(cases):
            save()
    return outputs
