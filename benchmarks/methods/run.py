"""Static and dynamic attention methods at about equal executed density, judged on the toy models: pairs read, share of
dense attention's mass they hold, time with the choice included, likeness to dense attention, the judge.

A run that is stopped goes on where it was: rows are kept with a hash of the model's weights and their settings. Every
prompt runs through all rows before the next one begins.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.editing.store import Row, Store, weights_of
from benchmarks.environment import RESULTS, environment
from benchmarks.methods.cases import CASES, Case, Setting, settings_text
from benchmarks.methods.rounds import rounds
from genkit.reading import whole

NAME = "methods"
DENSE = "dense"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks methods``."""
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--prompts", type=int, default=24, help="seen prompts with one object (default 24)")
    parser.add_argument(
        "--looked", type=int, default=8, help="prompts whose queries and keys are looked at (default 8)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"), help="folder of base runs and dense runs")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure what is missing; the report is whole after every prompt."""
    import torch

    from benchmarks.methods.outputs import painter
    from benchmarks.methods.report import text

    if options.prompts < 1 or options.looked < 0:
        raise SystemExit("--prompts: a whole number >= 1; --looked: a whole number >= 0")
    torch.set_num_threads(options.threads)
    store = Store(options.output / f"{NAME}.json")
    store.facts = environment()
    dtype = getattr(torch, options.dtype)
    benches = (
        _Bench(name, options, store, painter(CASES[name], options.prompts, dtype)) for name in options.case or CASES
    )
    return rounds(NAME, benches, options.prompts, store, text, options.output)


class _Bench:
    """One case.

    Args:
        name: of the case.
        options: of the command.
        store: where rows are kept.
        painter: of its model.
    """

    def __init__(self, name: str, options: argparse.Namespace, store: Store, painter: Any):
        from genkit.models import locate

        self.name, self.case, self.options, self.store, self.painter = name, CASES[name], options, store, painter
        self.weights = weights_of(locate(self.case.model).path)
        facts = store.facts
        self.at = f"{facts['cpu']}, {facts['threads']} of {facts['cores']} threads; commit {facts['commit']}"
        self.folder = options.work / f"{name}-{self.weights}-{options.dtype}"

    def prompt(self, number: int) -> bool:
        """Measure what rows lack of a prompt; whether there was something."""
        settings = methods_of(self.case)
        looked = [one for one in settings if number < self.options.looked and self._row("look", one).count == number]
        drawn = [one for one in settings if self._row("outputs", one).count == number]
        whole = self._row("outputs", None)
        if not looked and not drawn and whole.count > number:
            return False
        base, dense, calls = self._dense(number, bool(looked))
        if whole.count == number:
            right = {name: float(value) for name, value in self.painter.judge(dense, number).items()}
            self._add(whole, right | {"base": float(self.painter.judge(base, number)["all"])})
        for setting in settings:
            if setting in looked:
                self._look(setting, calls)
            if setting in drawn:
                self._draw(setting, base, dense, number)
        return True

    def _row(self, kind: str, setting: Setting | None) -> Row:
        method = DENSE if setting is None else settings_text(setting)
        settings = self.case.settings | {"dtype": self.options.dtype}
        return self.store.row(self.case.model, f"{self.name}/{kind}", method, settings, self.weights)

    def _add(self, row: Row, values: dict[str, float]) -> None:
        if self.at not in row.at:
            row.at.append(self.at)
        row.add(values)

    def _dense(self, number: int, looked: bool) -> tuple[Any, Any, Any]:
        """The base run and the dense one, kept in files; with ``looked`` also its attention calls."""
        from benchmarks.methods.mass import Calls
        from benchmarks.methods.outputs import kept
        from benchmarks.recall import taker

        base = kept(self.folder / f"base-{number}.npz", lambda: self.painter.base(number))
        if not looked:
            path = self.folder / f"dense-{number}.npz"
            return base, kept(path, lambda: self.painter.again(base, number, None)), None
        made = round(self.case.steps * self.case.strength)
        taken = taker([made // 2])()
        frames = self.painter.again(base, number, taken)
        if not taken.found:
            raise SystemExit(f"{self.name}: no attention call was seen in step {made // 2} of {made}")
        dense = kept(self.folder / f"dense-{number}.npz", lambda: frames)
        return base, dense, Calls(taken.found)

    def _look(self, setting: Setting, calls: Any) -> None:
        from benchmarks.methods.mass import measure
        from genkit.attention import registry

        self._add(self._row("look", setting), measure(registry.build(*setting), calls))

    def _draw(self, setting: Setting, base: Any, dense: Any, number: int) -> None:
        import genkit
        from genkit.attention import registry
        from genkit.evaluation.metrics import psnr

        schedule = genkit.Schedule(steps=f"{self.case.dense}:")
        frames = self.painter.again(base, number, registry.build(*setting), schedule)
        right = {name: float(value) for name, value in self.painter.judge(frames, number).items()}
        self._add(self._row("outputs", setting), {"psnr": psnr(frames, dense)} | right)


def methods_of(case: Case) -> list[Setting]:
    """All methods of a case, each once."""
    return [setting for group in case.groups.values() for setting in group]
