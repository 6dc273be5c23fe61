"""What the GPU kernels are made of, read off their machine code: no GPU is needed, and no time is measured.

Every kernel is compiled through its real launch path for every target. Of each loop that multiplies the table gives

* instructions times warps per 1,024 scores, the issue slots a score takes (as many as the instructions of a step of
  128x64 scores with 8 warps);
* exp2 per score: 1.00 is no duplicated work, and the forward pass needs one more per row and step;
* in flight: how many groups of copies the strictest wait leaves under way, "TMA" where barriers replace the count
  (NVIDIA); single loads on AMD;
* fences: memory barriers per step; the matrix instructions; registers, bytes of stack (AMD: spilled registers), shared.

Tiles are queries x keys, warps, stages. Fewer instructions are not always less time: only ``kernels_gpu`` measures
that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.environment import environment, report, table

ROOT = Path(__file__).parents[2]
#: Head sizes of known models; all but 64 and 128 are compiled with one rule only.
DIMS = (40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; default: all")
    parser.add_argument("--dim", action="append", type=int, choices=DIMS, help="head size; default: 64 and 128")
    parser.add_argument("--processes", type=int, default=1, help="targets compiled at once, a core each")
    parser.add_argument("--output", default="kernels_static", help="name of the result files in benchmarks/results")


def run(options: argparse.Namespace) -> int:
    """Compile, read and write ``benchmarks/results/<output>.json`` and ``.md``. Five minutes of a core a target."""
    targets, dims = options.target or TARGETS, options.dim or (128, 64)
    with ThreadPoolExecutor(options.processes) as pool:
        found = dict(zip(targets, pool.map(lambda target: _measure(target, dims), targets), strict=True))
    failed = [target for target, rows in found.items() if rows is None]
    if failed:
        print(f"compiling failed for {', '.join(failed)}: nothing written", file=sys.stderr)
        return 1
    rows = [row for target in targets for row in found[target]]
    facts = environment()
    report(options.output, {"environment": facts, "rows": rows}, _markdown(rows, facts))
    return 0


def _measure(target: str, dims: tuple[int, ...]) -> list[dict] | None:
    """The rows of a target, from a process of its own: a compiler may abort its process."""
    command = [sys.executable, "-m", "tests.aot.measure", target, *map(str, dims)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return None if done.returncode else [json.loads(line) for line in done.stdout.splitlines()]


def _markdown(rows: list[dict], facts: dict) -> str:
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("triton", "torch"))
    lines = ["# What the GPU kernels are made of", "", *__doc__.strip().splitlines()[2:], ""]
    lines += [f"Compiled with {versions}; commit {facts['commit']}. No kernel ran."]
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [{k: v for k, v in row.items() if k != "target"} for row in rows if row["target"] == target]
        lines += ["", f"## {target}", "", table(mine)]
    return "\n".join(lines) + "\n"
