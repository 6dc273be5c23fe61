"""Which changed lines does no test notice? ``python -m tests.mutation.sweep --count 100``

Two steps, both in forked children of one process that has imported torch and Diffusers once:

1. record: every test file of the rooms runs once; for each test, the functions that it calls and its time. Kept in
   ``--record FILE`` and not repeated while the file is there.
2. mutate: a seeded sample of single-token changes. For each one the quickest tests that call the changed function run,
   until one fails (killed), ``--seconds`` of processor time are used up, or all passed (survived).

Survivors are printed with their line and change. Nothing is written to the source: the changed module is imported from
memory.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("patching", "attention", "pipelines")
KILLED, SURVIVED, SLOW, UNTESTED = "killed", "survived", "timeout", "untested"


def child(work, seconds: float) -> tuple[int, bool]:
    """Run ``work()`` in a forked child; (its exit code, whether the limit of processor seconds ended it)."""
    number = os.fork()
    if number == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 3))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 70
        try:
            code = work()
        finally:
            os._exit(int(code))
    _, status = os.waitpid(number, 0)
    if os.WIFSIGNALED(status):
        return 1, os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return os.WEXITSTATUS(status), False


class Recorder:
    """A pytest plug-in: the package's functions that every test calls, and its processor time."""

    def __init__(self, file: Path):
        self.file = file
        self.setup: set[str] = set()

    def pytest_runtest_protocol(self, item, nextitem):
        called: set[str] = set()
        package = str(ROOT / "genkit")

        def trace(frame, event, _):
            code = frame.f_code
            if code.co_filename.startswith(package):
                called.add(f"{os.path.relpath(code.co_filename, ROOT)}::{code.co_qualname}")

        from _pytest.runner import runtestprotocol

        begun = time.process_time()
        sys.settrace(trace)
        try:
            reports = runtestprotocol(item, nextitem=nextitem)
        finally:
            sys.settrace(None)
        spent = time.process_time() - begun
        passed = all(report.passed for report in reports)
        if passed:
            row = {"test": item.nodeid, "seconds": spent, "calls": sorted(called)}
            with open(self.file, "a") as file:
                file.write(json.dumps(row) + "\n")
        return True


def record(file: Path, rooms: list[str]) -> None:
    """Step 1 for every test file of the rooms that is not in ``file`` yet."""
    import pytest

    known = {json.loads(line)["test"].split("::")[0] for line in file.open()} if file.exists() else set()
    for test in sorted(path for room in rooms for path in (ROOT / "tests" / room).rglob("test_*.py")):
        name = str(test.relative_to(ROOT))
        if name in known:
            continue
        arguments = ["-q", "-p", "no:cacheprovider", name]
        child(lambda arguments=arguments: pytest.main(arguments, plugins=[Recorder(file)]), 900)
        print(f"recorded {name}", flush=True)


class FromMemory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from changed source."""

    def __init__(self, mutant: Mutant):
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self.package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.package else parts)
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(
            name,
            self.mutant.path,
            loader=self,
            submodule_search_locations=[str(self.mutant.path.parent)] if self.package else None,
        )

    def get_source(self, name):
        return self.mutant.source()

    def is_package(self, name):
        return self.package

    def exec_module(self, module):
        exec(compile(self.mutant.source(), str(self.mutant.path), "exec"), module.__dict__)


def tests_of(mutant: Mutant, rows: list[dict], seconds: float) -> list[str]:
    """The quickest tests that call the changed function, as many as fit the time, of many files."""
    function = f"{mutant.path.relative_to(ROOT)}::{mutant.function}"
    able = [row for row in rows if any(name == function or name.startswith(f"{function}.<") for name in row["calls"])]
    able.sort(key=lambda row: row["seconds"])
    seen: Counter = Counter()
    ranked = []
    for row in able:  # the quickest of every file first, then the second of every file, ...
        file = row["test"].split("::")[0]
        ranked.append((seen[file], row["seconds"], row["test"]))
        seen[file] += 1
    chosen, total = [], 0.0
    for _, spent, test in sorted(ranked):
        if chosen and total + spent > seconds:
            continue
        chosen.append(test)
        total += spent
    return chosen


def judge(mutant: Mutant, rows: list[dict], seconds: float) -> str:
    """Step 2 for one mutant."""
    import pytest

    tests = tests_of(mutant, rows, seconds)
    if not tests:
        return UNTESTED

    def work() -> int:
        sys.meta_path.insert(0, FromMemory(mutant))
        return pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests])

    code, limited = child(work, 6 * seconds + 30)
    if limited:
        return SLOW
    return SURVIVED if code == 0 else KILLED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="mutants in the sample (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15, help="processor time of a mutant's tests (default 15)")
    parser.add_argument("--record", type=Path, default=Path("build/mutation.jsonl"))
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS))
    parser.add_argument("--part", default="0/1", help="this process takes every n-th mutant: 0/2, 1/2")
    options = parser.parse_args()
    os.chdir(ROOT)
    # Imported once, shared by all children. genkit is not: each child imports its own.
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    record(options.record, options.rooms)
    rows = [json.loads(line) for line in options.record.open()]
    files = sorted(path for room in options.rooms for path in (ROOT / "genkit" / room).rglob("*.py"))
    everything = [mutant for path in files for mutant in mutants(path)]
    sample = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    print(f"{len(everything)} mutants, {len(sample)} in the sample", flush=True)
    part, parts = map(int, options.part.split("/"))
    found: Counter = Counter()
    for number, mutant in enumerate(sample):
        if number % parts != part:
            continue
        verdict = judge(mutant, rows, options.seconds)
        found[verdict] += 1
        where = f"{mutant.path.relative_to(ROOT)}:{mutant.line} {mutant.function}: {mutant.change}"
        print(f"{number:4d} {verdict:9s} {where}", flush=True)
    print(dict(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
