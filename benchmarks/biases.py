"""Attention with a bias of places against a dense bias tensor in torch's attention, measured turn by turn in one run.

No model: queries and keys are random. Every time is compared with that of the dense bias tensor in the same turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size
from genkit.reading import whole

GRIDS = ("7x16x16", "13x16x16", "28x16x16")
HEADS, WIDTH = 4, 64
#: Name -> bias and cutoff of the method ``biased``.
CASES = {
    "alibi, table": ("alibi:slope=8", None),
    "alibi, SVD to 0.05 logits": ("alibi:slope=8+svd:error=0.05", None),
    "alibi, cutoff 8": ("alibi:slope=8", 8.0),
    "distance 1/8, table": ("distance:t=12.5%:h=12.5%:w=12.5%", None),
    "distance 1/8, SVD to 0.05 logits": ("distance:t=12.5%:h=12.5%:w=12.5%+svd:error=0.05", None),
    "distance 1/8, cutoff 8": ("distance:t=12.5%:h=12.5%:w=12.5%", 8.0),
}
DENSE, TENSOR = "no bias, torch", "dense bias tensor, torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks biases``."""
    parser.add_argument("--grid", action="append", help="frames x rows x columns of tokens (repeatable)")
    parser.add_argument("--turns", type=int, default=7, help="times everything is measured")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument(
        "--training-tokens",
        type=int,
        default=2000,
        help="measure forward and backward on grids of at most so many tokens",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    torch.set_num_threads(options.threads)
    facts = {**environment(), "load average": os.getloadavg()}
    rows = []
    for grid in options.grid or GRIDS:
        rows += measure(grid, options.turns, training=False)
        if prod(parse_size(grid)) <= options.training_tokens:
            rows += measure(grid, options.turns, training=True)
    text = (
        "\n\n".join(
            [
                "# Biases of places on the CPU",
                f"{machine_line(facts)} One attention call without a model, {HEADS} heads of {WIDTH} channels, "
                f"float32, {options.turns} turns, everything once a turn. `against the tensor` is the mean over turns "
                f"of the time of torch's attention with the finished bias as a tensor of all pairs (its making not "
                f"counted), over that of the row in the same turn, with the standard error; above 1 is faster. "
                f"`forward, backward`: gradients of queries, keys and values; the bias is fixed. Bias memory: what is "
                f"kept between calls.",
                table(rows),
            ]
        )
        + "\n"
    )
    report("biases", {"environment": facts, "turns": options.turns, "rows": rows}, text, options.output)
    return 0


def measure(grid: str, turns: int, training: bool) -> list[dict[str, Any]]:
    """A row for torch without and with a bias tensor, and for every case."""
    from genkit.attention.biased import Biased
    from genkit.attention.biases import spec_of
    from genkit.attention.cache import PatchCache
    from genkit.attention.scored import bias_rows
    from genkit.attention.site import Site
    from genkit.layout import TokenLayout

    layout = TokenLayout.of_grid(*parse_size(grid))
    site = Site.of_layout(layout, heads=HEADS)
    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, layout.length, HEADS, WIDTH, generator=noise) for _ in range(3)]
    pushed = torch.randn(1, layout.length, HEADS, WIDTH, generator=noise)
    full = bias_rows(spec_of("alibi:slope=8"), layout, torch.arange(layout.length), HEADS).float()[None].contiguous()

    def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        parts = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)

    calls: dict[str, Callable[..., torch.Tensor]] = {
        DENSE: lambda q, k, v: torch_attention(q, k, v, None),
        TENSOR: lambda q, k, v: torch_attention(q, k, v, full),
    }
    facts = {DENSE: ("1.000", 0), TENSOR: ("1.000", full.nbytes)}
    for name, (bias, cutoff) in CASES.items():
        method, cache = Biased(bias=bias, cutoff=cutoff), PatchCache()
        calls[name] = lambda q, k, v, method=method, cache=cache: method.attend(q, k, v, site, cache)
        terms = method.bias_terms(inputs[0], site, cache)
        density = method.density(site, cache)
        facts[name] = (f"{density.executed:.3f}", sum(x.nbytes for term in terms for x in term.tensors()))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            spent = _seconds(call, inputs, pushed if training else None)
            if turn:  # the first one plans
                seconds[name].append(spent)
    rows = []
    for name, times in seconds.items():
        ratios = [other / own for other, own in zip(seconds[TENSOR], times, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
        rows.append(
            {
                "grid": grid,
                "tokens": layout.length,
                "measured": "forward, backward" if training else "forward",
                "bias": name,
                "pairs executed": facts[name][0],
                "bias memory, MB": f"{facts[name][1] / 1e6:.2f}",
                "ms, median": f"{1e3 * statistics.median(times):.0f}",
                "against the tensor": "1" if name == TENSOR else f"{statistics.mean(ratios):.2f} ± {error:.2f}",
            }
        )
    return rows


def _seconds(call: Callable[..., torch.Tensor], inputs: list[torch.Tensor], pushed: torch.Tensor | None) -> float:
    """Wall-clock of one call; with ``pushed``, the gradient of the output, of the backward pass too."""
    if pushed is None:
        with torch.no_grad():
            start = time.perf_counter()
            call(*inputs)
            return time.perf_counter() - start
    fresh = [x.clone().requires_grad_() for x in inputs]
    start = time.perf_counter()
    call(*fresh).backward(pushed)
    return time.perf_counter() - start
