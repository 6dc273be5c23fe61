"""Ahead-of-time compilation of every kernel for every target, without a GPU.

``python -m tests.aot [TARGET ...] [--full]``

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


def main(arguments: list[str]) -> int:
    flags = [a for a in arguments if a.startswith("--")]
    targets = [a for a in arguments if not a.startswith("--")] or list(TARGETS)
    unknown = sorted(set(targets) - set(TARGETS)) + [f for f in flags if f != "--full"]
    if unknown:
        print(f"unknown: {' '.join(unknown)}; targets: {' '.join(TARGETS)}; flag: --full", file=sys.stderr)
        return 2
    start = time.monotonic()
    print(
        "| target | kernel | tile | registers | spilled | shared KiB | s | |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as fresh:
        environment = {"TRITON_CACHE_DIR": fresh} | {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

        def check(target: str) -> int:
            command = [sys.executable, "-m", "tests.aot.check", target, *flags]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            print(done.stdout, end="", flush=True)
            return done.returncode

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            codes = dict(zip(targets, pool.map(check, targets), strict=True))
    failed = [f"{target} (exit {code})" for target, code in codes.items() if code]
    print(f"\n{len(targets)} targets in {time.monotonic() - start:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
