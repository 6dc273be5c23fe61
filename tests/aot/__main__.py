"""Ahead-of-time compilation of every kernel for every target, without a GPU.

``python -m tests.aot [TARGET ...] [--full] [--again] [--record]``

Numbers of kernels that are recorded (``tests/aot/recorded``) under the same digest of all that decides them are taken
as recorded and held against today's budgets; the others are compiled. ``--full``: every combination. ``--again``:
compile all of them, recorded or not, and fail where the record says otherwise. ``--record``: write the record of these
targets anew, without what is no longer asked for; with ``--again`` out of nothing but this run.

One process per target (a compiler may abort its process), an empty compile cache unless TRITON_CACHE_DIR is set. Exit
code 1 when a kernel spills, needs more shared memory than the target has, or fails to compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from tests.aot.driver import TARGETS

FLAGS = ("--full", "--again", "--record")


def main(arguments: list[str]) -> int:
    flags = [a for a in arguments if a.startswith("--")]
    targets = list(dict.fromkeys(a for a in arguments if not a.startswith("--"))) or list(TARGETS)
    unknown = sorted(set(targets) - set(TARGETS)) + [f for f in flags if f not in FLAGS]
    if unknown:
        allowed = f"targets: {' '.join(TARGETS)}; flags: {' '.join(FLAGS)}"
        print(f"unknown: {' '.join(unknown)}; {allowed}", file=sys.stderr)
        return 2
    if {"--full", "--record"} <= set(flags):
        print("--full --record: only the list without --full is recorded; give one of the two", file=sys.stderr)
        return 2
    start = time.monotonic()
    print(
        "| target | kernel | tile | registers | spilled | shared KiB | s | |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as fresh:
        environment = {"TRITON_CACHE_DIR": fresh} | {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

        def check(target: str) -> tuple[int, int, int]:
            """Exit code, kernels compiled and kernels as recorded."""
            command = [sys.executable, "-m", "tests.aot.check", target, *flags]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            print(done.stdout, end="", flush=True)
            rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {target} |")]
            taken = sum("| recorded |" in row for row in rows)
            return done.returncode, len(rows) - taken, taken

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            told = dict(zip(targets, pool.map(check, targets), strict=True))
    failed = [f"{target} (exit {code})" for target, (code, _, _) in told.items() if code]
    compiled, taken = (sum(counts[part] for counts in told.values()) for part in (1, 2))
    took = f"{len(targets)} targets in {time.monotonic() - start:.0f} s"
    kernels = f"{compiled} kernels compiled, {taken} as recorded"
    print(f"\n{took}: {kernels}; failed: {', '.join(failed) or 'none'}")
    if compiled and not flags:
        print(f"Record what was compiled: python -m tests.aot {' '.join(targets)} --record")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
