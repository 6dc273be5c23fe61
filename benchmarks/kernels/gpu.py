"""Block-sparse attention on a GPU against dense attention and FlexAttention, measured in one run.

``python -m benchmarks kernels_gpu`` runs the operator's GPU tests first and stops when one fails. Rates count useful
work: 4 * D operations per pair of a visited block in the forward pass, 10 * D in the backward (five products). Results
are written after every problem, so an interrupted run keeps what it measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.environment import environment, machine_line, table, write_results
from benchmarks.kernels.problems import Problem, problems
from benchmarks.kernels.timing import peak_bytes, roofline, seconds
from genkit.kernels import block_sparse_attention
from genkit.kernels.block_sparse.impl import flex as flex_plain
from genkit.kernels.block_sparse.impl import flex_flash, flex_tma

ROOT = Path(__file__).parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

FLEX = {"flex": flex_plain, "flex TMA": flex_tma, "flex FLASH": flex_flash}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line."""
    parser.add_argument("--problem", action="append", help="a registered problem (repeatable); default: all that fit")
    parser.add_argument("--list", action="store_true", help="print the registered problems and stop")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--repeats", type=int, default=10, help="times each call is measured, fewer when it is slow")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="start no further problem after this long; the tests do not count",
    )
    parser.add_argument("--quick", action="store_true", help="leave out the largest problems and FlexAttention")
    parser.add_argument("--roofline", action="store_true", help="print what the machine can do at best and stop")
    parser.add_argument("--output", default="kernels_gpu", help="name of the result files in benchmarks/results")


def run(options: argparse.Namespace) -> int:
    """Measure and write ``benchmarks/results/<output>.json`` and ``.md``."""
    known = problems()
    if options.list:
        print("\n".join(known))
        return 0
    unknown = sorted(set(options.problem or ()) - set(known))
    if unknown:
        print(f"unknown problems {unknown}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA or ROCm device, and there is none here", file=sys.stderr)
        return 1
    device, dtype = torch.device("cuda", torch.cuda.current_device()), DTYPES[options.dtype]
    best = roofline(device, dtype)
    print("roofline:", best, flush=True)
    if options.roofline:
        return 0
    print("running the GPU tests; compiling kernels takes most of the time", flush=True)
    if not tests_pass():
        print("the operator's GPU tests are not green (see above): nothing measured", file=sys.stderr)
        return 1
    chosen = [known[name] for name in options.problem or known]
    if options.quick and not options.problem:
        chosen = [problem for problem in chosen if not problem.large]
    measure_all(chosen, device, dtype, options, best)
    return 0


def measure_all(chosen: list[Problem], device: torch.device, dtype: torch.dtype, options, best: dict) -> None:
    """Measure problem by problem and write the results so far after each."""
    facts, rows, dense_rows = environment(), [], {}
    start = time.monotonic()
    for number, problem in enumerate(chosen):
        left_out = [other.name for other in chosen[number:]]
        if options.budget is not None and time.monotonic() - start > options.budget:
            print(f"--budget is spent; not measured: {', '.join(left_out)}")
            break
        try:
            rows.append(measure(problem, device, dtype, options, dense_rows))
        except torch.OutOfMemoryError as error:
            told = str(error).splitlines()[0][:90]
            rows.append({"problem": problem.name, "tokens": problem.tokens, "failed": f"out of memory: {told}"})
        print(rows[-1], flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        note = f"\n\nNot measured: {', '.join(left_out[1:])}" if left_out[1:] else ""
        head = f"# Block-sparse attention on a GPU, {options.dtype}\n\n{machine_line(facts)}\n\nBest here: {best}\n\n"
        data = {"machine": facts, "roofline": best, "rows": rows, "not measured": left_out[1:]}
        paths = write_results(options.output, data, head + table(rows) + note + "\n")
    if rows:
        print(f"wrote {paths[0]} and {paths[1]}")


def tests_pass() -> bool:
    """Run tests/gpu, on several processes where pytest-xdist is there; True when all pass. A test may only be skipped
    for want of device memory."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/gpu"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-4000:] + done.stderr[-2000:], flush=True)
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    return done.returncode == 0 and all("device memory" in line for line in skipped)


def measure(
    problem: Problem, device: torch.device, dtype: torch.dtype, options: argparse.Namespace,
    dense_rows: dict | None = None,
) -> dict[str, object]:  # fmt: skip
    """One row: forward, forward + backward, dense and compiled FlexAttention on the same inputs. ``dense_rows`` keeps
    the dense figures by shape: several problems share one."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, problem.tokens, problem.heads, problem.dim)
    q, k, v, grad = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in range(4))
    planning = seconds(lambda: problem.plan(device), device, repeats=3, warm=1)
    plan = problem.plan(device)
    visited = visited_pairs(plan, problem.heads)

    def timed(function):
        return seconds(function, device, options.repeats)

    backend = "triton" if device.type == "cuda" else "auto"

    def sparse():
        return block_sparse_attention(q, k, v, plan, backend=backend)[0]

    forward = timed(sparse)
    row = {
        "problem": problem.name,
        "tokens": problem.tokens,
        "visited": f"{visited / (problem.heads * problem.tokens**2):.1%}",
        "forward ms": round(1e3 * forward, 3),
        "forward TFLOP/s": round(4 * problem.dim * visited / forward / 1e12, 1),
    }
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    both = timed(lambda: torch.autograd.grad(sparse(), (q, k, v), grad))
    row["backward ms"] = round(1e3 * (both - forward), 3)
    row["backward TFLOP/s"] = round(10 * problem.dim * visited / (both - forward) / 1e12, 1)
    peak = peak_bytes(lambda: torch.autograd.grad(sparse(), (q, k, v), grad), device)
    row["peak MiB"] = "-" if peak is None else round(peak / 2**20)
    row["planning ms"] = round(1e3 * planning, 3)
    row["permutation ms"] = round(1e3 * permutation(plan, q, timed), 3)
    dense_rows = {} if dense_rows is None else dense_rows
    if shape not in dense_rows:
        dense_rows[shape] = dense(problem, q, k, v, grad, timed)
    row |= dense_rows[shape]
    if not options.quick:
        row |= flex(problem, plan, q, k, v, grad, timed)
    return row


def visited_pairs(plan, heads: int) -> int:
    """Query-key pairs in visited blocks over all heads."""
    blocks = int((plan.full_count + plan.partial_count).sum())
    return blocks * plan.block_q * plan.block_k * (heads // plan.heads)


def permutation(plan, x: torch.Tensor, timed) -> float:
    """Seconds to permute q, k, v and to restore the output."""
    if plan.order is None:
        return 0.0
    keys = plan.key_order if plan.key_order is not None else plan.order
    with torch.no_grad():
        return timed(lambda: (plan.order.restore(plan.order.apply(x)), keys.apply(x), keys.apply(x)))


def dense(problem: Problem, q, k, v, grad, timed) -> dict[str, object]:
    """Every dense backend torch offers here; a backend that refuses is told as such."""
    work = problem.heads * problem.tokens**2 * problem.dim
    inputs = [x.transpose(1, 2) for x in (q, k, v)]
    found: dict[str, object] = {}
    for name, backend in DENSE.items():

        def call(backend=backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*inputs)

        try:
            forward = timed(lambda: call().detach())
            both = timed(lambda: torch.autograd.grad(call(), (q, k, v), grad.transpose(1, 2)))
        except RuntimeError as error:
            found[f"{name} TFLOP/s"] = f"refused: {str(error).splitlines()[0][:60]}"
            found[f"{name} backward TFLOP/s"] = "-"
            continue
        found[f"{name} TFLOP/s"] = round(4 * work / forward / 1e12, 1)
        found[f"{name} backward TFLOP/s"] = round(10 * work / (both - forward) / 1e12, 1)
    return found


def flex(problem: Problem, plan, q, k, v, grad, timed) -> dict[str, object]:
    """Compiled FlexAttention on the same plan, tokens already in block order: its own kernels, with TMA, and on
    FlashAttention 4."""
    mask = plan.in_order().to_block_mask()
    with torch.no_grad():
        if plan.order is not None:
            q, grad = plan.order.apply(q), plan.order.apply(grad)
        if plan.key_order is not None:
            k, v = plan.key_order.apply(k), plan.key_order.apply(v)
    row: dict[str, object] = {}
    for name, module in FLEX.items():
        row |= {f"{name} ms": "-", f"{name} backward ms": "-"}
        if reason := module.why_not(q, k, v, plan.in_order(), needs_grad=True):
            row[f"{name} ms"] = f"refused: {reason[:60]}"
            continue
        # Every problem compiles anew; after a few the compiler would give up and run the N x N version instead.
        torch._dynamo.reset()
        inputs = [x.transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
        try:
            call = flex_call(inputs, mask, getattr(module, "OPTIONS", None))
            forward = timed(lambda call=call: call().detach())
            both = timed(lambda call=call, x=inputs: torch.autograd.grad(call(), x, grad.transpose(1, 2)))
        except Exception as error:  # the compiler raises many kinds; the row must say that it did
            row[f"{name} ms"] = f"failed: {type(error).__name__}"
            continue
        row |= {f"{name} ms": round(1e3 * forward, 3), f"{name} backward ms": round(1e3 * (both - forward), 3)}
    return row


def flex_call(inputs, mask, options):
    """A call of compiled FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(*inputs, block_mask=mask, kernel_options=options)
