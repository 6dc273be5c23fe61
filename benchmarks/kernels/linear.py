"""Linear attention's constant speed: time per token of ``linear_state`` at growing lengths, forward and backward.

Dense attention of torch stands beside it while it is short enough to wait for. Every length is measured in turn within
each round, so that a busy machine slows all of them alike; the least of the rounds is told.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table

DENSE = "dense softmax (torch)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks kernels_linear``."""
    parser.add_argument("--lengths", default="1024,4096,16384,65536", help="tokens")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dense", type=int, default=4096, help="longest sequence for dense attention")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    torch.set_num_threads(1)
    lengths = [int(length) for length in options.lengths.split(",")]
    forms = _forms(options.heads)
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for _ in range(options.rounds):
        for length in lengths:
            for name, form in forms.items():
                if name != DENSE or length <= options.dense:
                    found = _measure(form, length, options.heads, options.width)
                    before = best.get((name, length), found)
                    best[name, length] = (min(before[0], found[0]), min(before[1], found[1]))
    facts = environment()
    rows = [_row(name, lengths, best) for name in forms]
    text = "\n".join(
        [
            "# Linear attention: time per token",
            "",
            machine_line(facts),
            f"Microseconds per token, forward / backward (which computes the forward again), {options.heads} heads of "
            f"{options.width}, float32, one thread, least of {options.rounds} interleaved rounds on a machine that was "
            "not idle. Dense attention grows with the length.",
            "",
            "`python -m benchmarks kernels_linear`",
            "",
            table(rows),
            "",
        ]
    )
    data = {"environment": facts, "heads": options.heads, "width": options.width, "rows": rows}
    report("kernels_linear", data, text, options.output)
    return 0


def _forms(heads: int) -> dict[str, Any]:
    import torch

    from genkit.kernels.linear_state import linear_state

    fading = torch.full((heads,), -0.1)

    def form(**options: Any) -> Any:
        return lambda q, k, v: linear_state(q, k, v, **options)[0]

    return {
        "all tokens": form(),
        "frames of 256, causal": form(mode="frame", group=256),
        "frames of 256, fading, no denominator": form(mode="frame", group=256, decay=fading, norm="none"),
        "Lightning-2: token by token, fading": form(mode="token", decay=fading, norm="none"),
        "LightNet: softmax over all tokens per channel": form(norm="channel_softmax"),
        DENSE: lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v))
        ),
    }


def _measure(form: Any, length: int, heads: int, width: int) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass."""
    import torch

    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, length, heads, width, generator=generator).mul(0.3).exp().requires_grad_() for _ in range(3)
    )
    start = time.perf_counter()
    out = form(q, k, v)
    forward = time.perf_counter() - start
    slope = torch.ones_like(out)
    start = time.perf_counter()
    out.backward(slope)
    return forward, time.perf_counter() - start


def _row(name: str, lengths: list[int], best: dict[tuple[str, int], tuple[float, float]]) -> dict[str, object]:
    row: dict[str, object] = {"form": name}
    for length in lengths:
        if (name, length) in best:
            one, two = (1e6 * each / length for each in best[name, length])
            row[f"{length:,} tokens"] = f"{one:.1f} / {two:.1f}"
    return row
