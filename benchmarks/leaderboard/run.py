"""Every attention method on the shipped models, by density and schedule: attention FLOPs, seconds, likeness, judge.

A run that is stopped goes on where it was: rows are kept with a hash of the model's weights and their settings. Every
prompt runs through all rows before the next one begins, so that a change in the machine's pace meets all rows alike.
``--docs docs`` renders the results into the documentation: a page with plots, and a quote on the page of every method.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.editing.store import Row, Store, weights_of
from benchmarks.environment import RESULTS, environment
from benchmarks.leaderboard.boards import BOARDS, Entry
from benchmarks.methods.rounds import rounds
from genkit.reading import whole

NAME = "leaderboard"
DENSE = "dense"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks leaderboard``."""
    parser.add_argument("--board", action="append", choices=BOARDS, help="repeatable; default: all")
    parser.add_argument("--prompts", type=whole(1), default=48, help="seen prompts with one object (default 48)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--threads", type=whole(1), default=1, help="processor threads (default 1)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/leaderboard"), help="folder of base runs and dense runs"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report and its numbers")
    parser.add_argument("--docs", type=Path, help="only render the results into this folder of documentation")


def run(options: argparse.Namespace) -> int:
    """Measure what is missing; the report is whole after every prompt."""
    import torch

    from benchmarks.leaderboard.report import text
    from benchmarks.methods.outputs import painter

    store = Store(options.output / f"{NAME}.json")
    if options.docs is not None:
        return _render(store, options.docs)
    torch.set_num_threads(options.threads)
    store.facts = environment()
    dtype = getattr(torch, options.dtype)
    benches = (
        _Bench(name, options, store, painter(BOARDS[name].case, options.prompts, dtype))
        for name in options.board or BOARDS
    )
    return rounds(NAME, benches, options.prompts, store, text, options.output)


def _render(store: Store, docs: Path) -> int:
    from benchmarks.leaderboard.pages import render

    if not store.rows:
        raise SystemExit(f"{store.path} has no rows: run `python -m benchmarks {NAME}` first")
    if not (docs / "methods").is_dir():
        raise SystemExit(f"--docs: got {docs}, allowed: the folder of the documentation, with methods/ in it")
    for path in render(store, docs):
        print(f"written: {path}")
    return 0


class _Bench:
    """One board.

    Args:
        name: of the board. options: of the command. store: where rows are kept. painter: makes and judges outputs.
    """

    def __init__(self, name: str, options: argparse.Namespace, store: Store, painter: Any):
        from genkit.models import locate

        self.name, self.board, self.options, self.store, self.painter = name, BOARDS[name], options, store, painter
        self.weights = weights_of(locate(self.board.case.model).path)
        facts = store.facts
        self.at = f"{facts['cpu']}, {facts['threads']} of {facts['cores']} threads; commit {facts['commit']}"
        self.folder = options.work / f"{name}-{self.weights}-{options.dtype}"

    def prompt(self, number: int) -> bool:
        """Measure what rows lack of a prompt; whether there was something."""
        missing = [entry for entry in self.board.entries if self.row(entry).count == number]
        whole = self.row(None)
        if not missing and whole.count > number:
            return False
        from benchmarks.methods.outputs import kept

        base = kept(self.folder / f"base-{number}.npz", lambda: self.painter.base(number))
        dense, values = self._made(base, number, None)
        if whole.count == number:
            self._add(whole, values | {"base": float(self.painter.judge(base, number)["all"])})
        for entry in missing:
            self._add(self.row(entry), self._against(dense, *self._made(base, number, entry)))
        return True

    def row(self, entry: Entry | None) -> Row:
        """Of an entry; None: of dense attention."""
        settings = self.board.case.settings | {"dtype": self.options.dtype}
        title = DENSE if entry is None else entry.title
        return self.store.row(self.board.case.model, self.name, title, settings, self.weights)

    def _add(self, row: Row, values: dict[str, float]) -> None:
        if self.at not in row.at:
            row.at.append(self.at)
        row.add(values)

    def _made(self, base: Any, number: int, entry: Entry | None) -> tuple[Any, dict[str, float]]:
        """An output and what it took; times are of the processor, other work on the machine counts little."""
        import genkit
        from genkit.attention import registry

        method = None if entry is None else registry.build(*entry.method)
        schedule = None if entry is None else genkit.Schedule(steps=entry.steps)
        with genkit.patching.Watch(self.painter.pipeline) as watch:
            start = time.process_time()
            frames = self.painter.again(base, number, method, schedule)
            seconds = time.process_time() - start
            cost = watch.cost()
        right = {name: float(value) for name, value in self.painter.judge(frames, number).items()}
        # Unknown (None) where a method's pairs depend on the data and it keeps no count of them.
        known = {
            name: value for name, value in zip(("computed", "executed"), cost.density, strict=True) if value is not None
        }
        percents = {name: 100 * value for name, value in known.items()}
        return frames, percents | {"attention ms": 1e3 * cost.seconds, "ms": 1e3 * seconds} | right

    @staticmethod
    def _against(dense: Any, frames: Any, values: dict[str, float]) -> dict[str, float]:
        from genkit.evaluation.metrics import psnr, ssim

        return values | {"psnr": psnr(frames, dense), "ssim": 100 * ssim(frames, dense)}
