"""What the GPU kernels are made of, read off their machine code: no GPU is needed, and no time is measured.

Every kernel is compiled through its real launch path for every target. Of each loop that multiplies the table gives

* instructions times warps per 1,024 scores, the issue slots a score takes (as many as the instructions of a step of
  128x64 scores with 8 warps);
* exp2 per score: 1.00 is no duplicated work, and the forward pass needs one more per row and step;
* in flight: how many groups of copies the strictest wait leaves under way, "TMA" where barriers replace the count
  (NVIDIA); single loads on AMD;
* fences: memory barriers per step; the matrix instructions; registers, bytes of stack (AMD: spilled registers), shared.

Beside ours: a plain dense forward pass in Triton (``tests/aot/dense.py``), and FlexAttention's own templates with the
tiles that torch takes by default, windows on three axes deciding about partial blocks, rendered from the installed
torch and compiled by the same Triton. A loop inside a step, over the ranks of a bias, counts as often as it is walked.

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

import benchmarks.environment
from benchmarks.environment import environment, report, table

ROOT = Path(__file__).parents[2]
#: Head sizes of known models; all but 64 and 128 are compiled with one rule only.
DIMS = (40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
_SLOTS = "instructions x warps / 1,024 scores"
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; default: all")
    parser.add_argument("--dim", action="append", type=int, choices=DIMS, help="head size; default: 64 and 128")
    told = "kernels whose name holds this text, repeatable: all texts; rows of other kernels stay as they are"
    parser.add_argument("--only", action="append", metavar="TEXT", default=[], help=told)
    parser.add_argument("--processes", type=int, default=1, help="targets compiled at once, a core each")
    parser.add_argument("--output", default="kernels_static", help="name of the result files in benchmarks/results")


def run(options: argparse.Namespace) -> int:
    """Compile, read and write ``benchmarks/results/<output>_<target>.json`` and ``.md`` of every target, and
    ``<output>.md`` and ``.json`` with what matters of all that there are. Ten minutes of a core a target."""
    targets, dims = options.target or TARGETS, options.dim or (128, 64)
    facts = environment()
    if options.only and (told := [t for t in targets if not _comparable(f"{options.output}_{t}", facts)]):
        before = {t: _compilers(_written(f"{options.output}_{t}")["environment"]) for t in told}
        named = ", ".join(f"{target} with {versions}" for target, versions in before.items())
        print(
            f"compiled before: {named}; now {_compilers(facts)}. Measure these targets without --only", file=sys.stderr
        )
        return 1
    with ThreadPoolExecutor(options.processes) as pool:
        found = dict(zip(targets, pool.map(lambda target: _measure(target, dims, options.only), targets), strict=True))
    failed = [target for target, rows in found.items() if rows is None]
    if failed:
        print(f"compiling failed for {', '.join(failed)}: nothing written", file=sys.stderr)
        return 1
    for target, rows in found.items():
        name = f"{options.output}_{target}"
        data = {"environment": facts, "rows": rows}
        if options.only and (before := _written(name)):
            data = _merged(before, data, options.only)
        report(name, data, _page(target, data["rows"], data["environment"]))
    known = {target: data for target in TARGETS if (data := _written(f"{options.output}_{target}"))}
    report(options.output, {"summary": _summary(known)}, _overview(options.output, known))
    return 0


def _written(name: str) -> dict | None:
    path = benchmarks.environment.RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _comparable(name: str, facts: dict) -> bool:
    """Whether rows of a file come from the compiler at hand; so do those of none."""
    before = _written(name)
    return before is None or _compilers(before["environment"]) == _compilers(facts)


def _compilers(facts: dict) -> str:
    return ", ".join(f"{name} {facts['versions'][name]}" for name in ("triton", "torch"))


def _merged(before: dict, now: dict, only: list[str]) -> dict:
    """Rows of kernels measured now in the place of older ones; the older environment, with both commits."""
    kernels: dict[str, list[dict]] = {}
    for row in before["rows"]:
        kernels.setdefault(row["kernel"], []).append(row)
    fresh: dict[str, list[dict]] = {}
    for row in now["rows"]:
        fresh.setdefault(row["kernel"], []).append(row)
    facts = before["environment"]
    commit = f"{facts['commit']}, {' '.join(only)} {now['environment']['commit']}"
    rows = [row for mine in (kernels | fresh).values() for row in mine]
    return {"environment": facts | {"commit": commit}, "rows": rows}


def _measure(target: str, dims: tuple[int, ...], only: list[str]) -> list[dict] | None:
    """The rows of a target, from a process of its own: a compiler may abort its process."""
    command = [sys.executable, "-m", "tests.aot.measure", target, *map(str, dims)]
    command += [word for text in only for word in ("--only", text)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return None if done.returncode else [json.loads(line) for line in done.stdout.splitlines()]


def _page(target: str, rows: list[dict], facts: dict) -> str:
    lines = [f"# What the GPU kernels are made of on {target}", "", *__doc__.strip().splitlines()[2:], "", _told(facts)]
    mine = [{k: v for k, v in row.items() if k != "target"} for row in rows]
    return "\n".join([*lines, "", table(mine)]) + "\n"


def _told(facts: dict) -> str:
    return f"Compiled with {_compilers(facts)}; commit {facts['commit']}. No kernel ran."


def _summary(known: dict[str, dict]) -> list[dict]:
    """Instructions times warps per 1,024 scores of full blocks and of those decided pair by pair, for every target."""
    rows = []
    for target, data in known.items():
        for dim in dict.fromkeys(_dim(row["kernel"]) for row in data["rows"]):
            row: dict = {"target": target, "D": dim}
            for title, kernel, loops in _COLUMNS:
                row[title] = _cell(data["rows"], kernel.format(dim=dim), loops)
            mine = [r["stack"] for r in data["rows"] if "Flex" not in r["kernel"] and _dim(r["kernel"]) == dim]
            row["most stack, ours"] = max(mine, default="-")
            rows.append(row)
    return rows


#: Title, kernel (of several the least, TMA or not), and its loops.
_COLUMNS = (
    ("forward", "forward D={dim} bf16, box rule", ("full", "box")),
    ("dense forward", "dense forward D={dim} bf16", ("all",)),
    ("Flex forward", "FlexAttention forward D={dim} bf16, rule of three axes", ("full", "rule")),
    ("dQ", "dq D={dim} bf16, box rule", ("full", "box")),
    ("Flex dQ", "FlexAttention backward D={dim} bf16, rule of three axes", ("dQ: full", "dQ: rule")),
    ("dK/dV", "dkv D={dim} bf16, box rule", ("full", "box")),
    ("Flex dK/dV", "FlexAttention backward D={dim} bf16, rule of three axes", ("dK and dV: full", "dK and dV: rule")),
)


def _dim(kernel: str) -> int:
    return int(kernel.partition("D=")[2].split()[0].strip(","))


def _cell(rows: list[dict], kernel: str, loops: tuple[str, ...]) -> str:
    found = []
    for loop in loops:
        names = kernel, f"{kernel}, TMA"
        mine = [row for row in rows if row["kernel"] in names and row["loop"] in (loop, f"pairs of {loop}")]
        best = min(mine, key=lambda row: row[_SLOTS], default=None)
        # an exponential twice is a score twice
        found.append("-" if best is None else f"{best[_SLOTS]}{' (2x)' * (best['exp2 / score'] > 1.4)}")
    return ", ".join(found)


def _overview(name: str, known: dict[str, dict]) -> str:
    lines = [
        "# What the GPU kernels are made of",
        "",
        "Instructions times warps per 1,024 scores of a step, bf16: full",
    ]
    lines[-1] += " blocks, then blocks decided pair by pair by windows on three axes (dense: every block). Every loop,"
    lines[-1] += " registers, stack and what the columns mean: one page a target. (2x): every score is computed twice."
    lines += ["", table(_summary(known)), ""]
    lines += [f"* [{target}]({name}_{target}.md): {_told(data['environment'])}" for target, data in known.items()]
    return "\n".join(lines) + "\n"
