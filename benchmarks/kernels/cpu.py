"""Block-sparse attention on the CPU against dense attention, measured turn by turn in one run.

``python -m benchmarks kernels_cpu`` checks the operator against brute force first and stops when that fails. The figure
of merit is time / (density x time of dense attention): 1.00 means that nothing is lost to sparsity. With one thread,
times are processor seconds of this process, so that other work on the machine does not count; the best of all turns is
taken, for dense attention too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.environment import environment, machine_line, table, write_results
from benchmarks.kernels.problems import random_blocks
from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.native import kinds
from genkit.reading import whole

ROOT = Path(__file__).parents[2]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GOALS = {"avx2": 1.3}  # of a kind that uses less than this processor may have
HEADS, WIDTH, BLOCK_Q, BLOCK_K = 8, 64, 256, 64
KERNELS = ("emitted", "avx512", "avx2", "portable", "torch")  # that --kernels names beside the default, "auto"


@dataclass(frozen=True)
class Problem:
    """``goal``: largest wanted time / (density x dense), by dtype; ``backward``: measure forward and backward."""

    name: str
    tokens: int
    plan: Callable[[torch.device], BlockPlan]
    goal: dict[str, float]
    backward: bool = False


def window(tokens: int, share: float) -> Callable[[torch.device], BlockPlan]:
    """Builder of contiguous windows of whole blocks around every query block."""

    def build(device: torch.device) -> BlockPlan:
        columns = tokens // BLOCK_K
        width = round(share * columns)
        middle = torch.arange(tokens // BLOCK_Q)[:, None] * (BLOCK_Q // BLOCK_K) + BLOCK_Q // BLOCK_K // 2
        first = (middle - width // 2).clamp(0, columns - width)
        column = torch.arange(columns)
        mask = ((column >= first) & (column < first + width)).to(device)
        return BlockPlan.from_dense_blocks(mask, tokens, tokens, block_q=BLOCK_Q, block_k=BLOCK_K)

    return build


def problems() -> list[Problem]:
    """The registered problems."""

    def scattered(tokens: int, share: float) -> Callable[[torch.device], BlockPlan]:
        return random_blocks(tokens, HEADS, share, BLOCK_Q, BLOCK_K)

    return [
        Problem("random 25%", 8192, scattered(8192, 0.25), {"fp32": 1.25, "bf16": 1.35}),
        Problem("random 10%", 8192, scattered(8192, 0.10), {"fp32": 1.3, "bf16": 1.45}),
        Problem("window 25%", 8192, window(8192, 0.25), {"fp32": 1.1, "bf16": 1.1}),
        Problem("window 10%", 8192, window(8192, 0.10), {"fp32": 1.1, "bf16": 1.1}),
        Problem("random 90%", 8192, scattered(8192, 0.90), {"fp32": 1.05 / 0.9, "bf16": 1.05 / 0.9}),
        Problem("every block", 8192, window(8192, 1.0), {"fp32": 1.05, "bf16": 1.05}),
        Problem("random 25%, forward + backward", 4096, scattered(4096, 0.25), {"fp32": 4 / 3, "bf16": 4 / 3}, True),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line."""
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="repeatable; default: all")
    parser.add_argument("--problem", action="append", help="a problem's name (repeatable); default: all")
    parser.add_argument("--turns", type=int, default=5, help="times every problem is measured")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument(
        "--kernels",
        choices=("auto", *KERNELS),
        action="append",
        help="kinds of kernels to measure in the same turns (repeatable); default: auto",
    )
    parser.add_argument("--output", default="kernels_cpu", help="name of the result files in benchmarks/results")


def run(options: argparse.Namespace) -> int:
    """Measure and write ``benchmarks/results/<output>.json`` and ``.md``."""
    chosen = [p for p in problems() if not options.problem or p.name in options.problem]
    if not chosen or len(chosen) < len(set(options.problem or ())):
        print(f"unknown problem; known: {', '.join(p.name for p in problems())}", file=sys.stderr)
        return 2
    if options.turns < 1 or options.threads < 1:
        print("--turns and --threads must be at least 1", file=sys.stderr)
        return 2
    if not _green():
        print("the operator disagrees with brute force: no speed is reported", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    chosen_kernels = options.kernels or ["auto"]
    try:
        for kind in chosen_kernels:
            with switched(kind):
                kinds.kind_for(torch.float32, WIDTH)
    except kinds.NoKernel:
        pass  # torch's kernel, which is measured like the others
    except UnsupportedError as error:
        print(error, file=sys.stderr)
        return 1
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name in options.dtype or DTYPES:
        for group in (False, True):
            rows += _measure([p for p in chosen if p.backward == group], name, options.turns, clock, chosen_kernels)
    facts = {**environment(), "load average": os.getloadavg()}
    unit = "processor" if options.threads == 1 else "wall-clock"
    text = (
        "\n\n".join(
            [
                "# Block-sparse attention on the CPU",
                f"{machine_line(facts)} {HEADS} heads of {WIDTH} channels, blocks of {BLOCK_Q} x {BLOCK_K}. Best of "
                f"{options.turns} turns, {unit} seconds, dense attention measured in the same turns. Load average "
                f"at the end: {facts['load average'][0]:.1f} (caches are shared with whatever else runs).",
                table(rows),
                "ratio = time / (density x dense time). Dense attention runs in torch, in the dtype given and with all "
                "that the processor has, whatever the kernels beside it may use.",
            ]
        )
        + "\n"
    )
    write_results(options.output, {"environment": facts, "turns": options.turns, "rows": rows}, text)
    print(text)
    return 0


def _green() -> bool:
    tests = "tests/kernels/block_sparse/test_parity.py::test_cpu_equals_brute_force"
    wanted = [f"{tests}[{start}]" for start in (0, 20, 40)]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *wanted], cwd=ROOT).returncode == 0


@contextmanager
def switched(kind: str) -> Iterator[None]:
    """The switch of the CPU's kernels set to a kind."""
    before = os.environ.get(kinds.SWITCH)
    os.environ[kinds.SWITCH] = kind
    try:
        yield
    finally:
        if before is None:
            del os.environ[kinds.SWITCH]
        else:
            os.environ[kinds.SWITCH] = before


def _measure(
    chosen: list[Problem], dtype: str, turns: int, clock: Callable[[], float], kernels: list[str]
) -> list[dict[str, object]]:
    """One row per problem and kind of kernels; all problems of one length take turns with dense attention."""
    if not chosen:
        return []
    tokens, backward = chosen[0].tokens, chosen[0].backward
    noise = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, tokens, HEADS, WIDTH, generator=noise).to(DTYPES[dtype]).requires_grad_(backward)
        for _ in range(3)
    ]
    seed = torch.randn(1, tokens, HEADS, WIDTH, generator=noise).to(DTYPES[dtype])

    def dense() -> torch.Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2)

    runs: dict[tuple[str, str], Callable[[], torch.Tensor]] = {("dense", "auto"): dense}
    planning, plans = {}, {}
    for problem in chosen:
        start = clock()
        plans[problem.name] = plan = problem.plan(torch.device("cpu"))
        planning[problem.name] = clock() - start
        for kind in kernels:
            runs[problem.name, kind] = lambda plan=plan: block_sparse_attention(*tensors, plan, backend="cpu")[0]
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(turns):
        for run, call in runs.items():
            with switched(run[1]):
                start = clock()
                out = call()
                if backward:
                    torch.autograd.grad(out, tensors, seed)
                best[run] = min(best[run], clock() - start)
    rows = []
    dense_time = best["dense", "auto"]
    for problem, kind in product(chosen, kernels):
        density, taken = plans[problem.name].density().executed, best[problem.name, kind]
        with switched(kind):
            told = kinds.report(DTYPES[dtype], WIDTH).partition(":")[0]
        rows.append(
            {
                "problem": problem.name,
                "kernels": told,
                "dtype": dtype,
                "N": tokens,
                "density": round(density, 4),
                "dense ms": round(1e3 * dense_time, 1),
                "ms": round(1e3 * taken, 1),
                "speed-up": round(dense_time / taken, 2),
                "ratio": round(taken / (density * dense_time), 3),
                "goal": round(GOALS.get(kind, problem.goal[dtype]), 2),
                "plan ms": round(1e3 * planning[problem.name], 1),
            }
        )
    return rows
