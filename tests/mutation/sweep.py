"""Which changed lines does no test notice? ``python -m tests.mutation.sweep --count 100``

Tests are collected once; all the rest happens in forked children of that process, which therefore start at once:

1. record: every test file runs once; for each test, the functions that it calls and its time. Kept in ``--record FILE``
   and not repeated for files that are in there.
2. mutate: a seeded sample of single-token changes in functions that a recorded test calls within ``--seconds`` of
   processor time. For each one the quickest of these tests run, as many as fit that time, until one fails (killed) or
   all passed (survived).

Survivors are printed with their line and change. Nothing is written to the source: the changed code takes the place of
the function's own in memory, and functions that remember results forget them. What a module works out while it is
imported is therefore not judged.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("patching", "attention", "pipelines")
#: What tests import while they run. It is imported before mutants are judged, so that not every child does it again.
LIBRARIES = ("diffusers", "transformers", "genkit")
KILLED, SURVIVED, SLOW, UNCHANGED, BROKEN = "killed", "survived", "timeout", "not changed", "broken"
FOUND = {0: SURVIVED, 1: KILLED, 2: UNCHANGED}


def child(work: Callable[[], int], seconds: float) -> tuple[int, bool]:
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


def run(item, nextitem) -> bool:
    """Whether a test passes."""
    from _pytest.runner import runtestprotocol

    return all(report.passed for report in runtestprotocol(item, nextitem=nextitem, log=False))


def record(file: Path, items: list) -> int:
    """What every test calls of the package, what it imports and its time; a line of JSON per test that passes."""
    package = str(ROOT / "genkit")
    known = set(sys.modules)
    for item, following in zip(items, [*items[1:], None], strict=True):
        called: set[str] = set()

        def trace(frame, event, _, called=called):
            code = frame.f_code
            if code.co_filename.startswith(package):
                called.add(f"{os.path.relpath(code.co_filename, ROOT)}::{code.co_qualname}")

        begun = time.process_time()
        sys.settrace(trace)
        try:
            passed = run(item, following)
        finally:
            sys.settrace(None)
        if passed:
            row = {"test": item.nodeid, "seconds": time.process_time() - begun, "calls": sorted(called)}
            row["modules"] = sorted(name for name in sys.modules.keys() - known if name.split(".")[0] in LIBRARIES)
            known.update(sys.modules)
            with open(file, "a") as lines:
                lines.write(json.dumps(row) + "\n")
    return 0


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def put_in(mutant: Mutant) -> bool:
    """Give the function in memory the changed code; False where there is none or it closes over other names."""
    path = str(mutant.path)
    module = compile(mutant.changed(), path, "exec", dont_inherit=True)
    new = {
        (each.co_qualname, each.co_firstlineno): each for each in codes(module) if each.co_qualname == mutant.function
    }
    done = False
    for each in gc.get_objects():
        if isinstance(each, functools._lru_cache_wrapper) and (each.__module__ or "").startswith("genkit"):
            each.cache_clear()
        if not isinstance(each, FunctionType) or each.__code__.co_filename != path:
            continue
        code = new.get((each.__code__.co_qualname, each.__code__.co_firstlineno))
        lines = [line for *_, line in each.__code__.co_lines() if line is not None]
        # Of a property's getter and setter, which share a name, only the one that holds the line.
        if code is not None and min(lines) <= mutant.line <= max(lines):
            if len(code.co_freevars) != len(each.__code__.co_freevars):
                return False
            each.__code__ = code
            done = True
    return done


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
        if total + spent > seconds:
            continue
        chosen.append(test)
        total += spent
    return chosen


def judge(mutant: Mutant, items: dict, tests: list[str], seconds: float) -> str:
    """Step 2 for one mutant."""

    def work() -> int:
        if not put_in(mutant):
            return 2
        for test, following in zip(tests, [*tests[1:], None], strict=True):
            if not run(items[test], following and items[following]):
                return 1
        return 0

    code, limited = child(work, 3 * seconds + 10)
    return SLOW if limited else FOUND.get(code, BROKEN)  # broken: the change could not be put in


class Sweep:
    """A pytest plug-in that takes the place of the loop over the collected tests."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.found: Counter = Counter()

    def pytest_runtestloop(self, session) -> bool:
        options = self.options
        items = {item.nodeid: item for item in session.items}
        files: dict[str, list] = {}
        for item in session.items:
            files.setdefault(item.nodeid.split("::")[0], []).append(item)
        file = options.record
        known = {json.loads(line)["test"].split("::")[0] for line in file.open()} if file.exists() else set()
        for name in files.keys() - known:
            child(lambda name=name: record(file, files[name]), options.record_seconds)
            print(f"recorded {name}", flush=True)
        rows = [row for row in map(json.loads, file.open()) if row["test"] in items]
        for name in dict.fromkeys(name for row in rows for name in row["modules"]):
            importlib.import_module(name)
        for room in options.rooms:
            self.sweep(room, rows, items)
        return True

    def sweep(self, room: str, rows: list[dict], items: dict) -> None:
        options = self.options
        everything = [each for path in sorted((ROOT / "genkit" / room).rglob("*.py")) for each in mutants(path)]
        # Asked once for every function, not for each of its mutants.
        tests = {(each.path, each.function): each for each in everything}
        tests = {function: tests_of(each, rows, options.seconds) for function, each in tests.items()}
        able = [each for each in everything if tests[each.path, each.function]]
        sample = random.Random(options.seed).sample(able, min(options.count, len(able)))
        print(f"{room}: {len(everything)} mutants, {len(able)} in tested functions, {len(sample)} taken", flush=True)
        for number, mutant in enumerate(sample):
            where = f"{mutant.path.relative_to(ROOT)}:{mutant.line} {mutant.function}: {mutant.change}"
            if options.only and not any(part in where for part in options.only):
                continue
            importlib.import_module(".".join(mutant.path.relative_to(ROOT).with_suffix("").parts))
            chosen = tests[mutant.path, mutant.function]
            verdict = judge(mutant, items, chosen, options.seconds)
            self.found[room, verdict] += 1
            print(f"{number:4d} {verdict:11s} {where} ({len(chosen)} tests)", flush=True)
        print({key: count for key, count in self.found.items() if key[0] == room}, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutants of each room (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15, help="processor time of a mutant's tests (default 15)")
    parser.add_argument("--record", type=Path, default=Path("build/mutation.jsonl"))
    parser.add_argument("--record-seconds", type=float, default=900, help="processor time to record a test file")
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS))
    parser.add_argument("--tests", nargs="+", help="test files or folders (default: the rooms' own)")
    parser.add_argument("--only", nargs="+", help="of the sample, those whose printed line holds one of these texts")
    options = parser.parse_args()
    os.chdir(ROOT)
    import pytest
    import torch

    torch.set_num_threads(1)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    tests = options.tests or [f"tests/{room}" for room in options.rooms]
    # Without capture: what children print is dropped, what this process prints is the result.
    return pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[Sweep(options)])


if __name__ == "__main__":
    sys.exit(main())
