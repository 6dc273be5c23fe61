"""The attention calls of every method that works on a grid against dense attention, measured turn by turn in one run.

No model: queries and keys are random, so methods that choose by content choose at random, which is their worst case.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.compare import Variant
from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size
from genkit.reading import whole

GRIDS = ("7x16x16", "13x16x16", "7x32x32")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS, WIDTH = 4, 64
DECAY = {"near": "decay", "sink": "false"}
VARIANTS = (
    Variant("neighborhood", {"size": "7x8x8", "stride": "1x4x4"}, {}),
    Variant("neighborhood", {"size": "7x8x8"}, {}),
    Variant("sliding_window", {"base": "8,8"}, {}),
    Variant("radial", DECAY, {}),
    Variant("radial", {**DECAY, "block_size": "64", "decay_factor": "0.1", "thin_below": "128"}, {}),
    Variant("mixture_of_block", {"temporal": "1", "spatial": "4,4", "box": "1,8,8"}, {}),
    Variant("mixture_of_block", {"temporal": "2", "spatial": "4,4", "box": "4,4,4"}, {}),
    Variant("agent", {}, {}),
)
_LEVELS = {"mode": "quantile", "quantiles": "0.14x0.08x0.06x0.3"}
CHOSEN = (
    Variant("block_select", {"keep": "0.1875"}, {}),
    Variant("block_select", {"keep": "0.1875", "score": "antidiagonal"}, {}),
    Variant("block_select", {"keep": "0.125", "tail": "16"}, {}),
    Variant("block_select", {"keep": "0.125", "tail": "16", "block": "32"}, {}),
    Variant("pyramid", _LEVELS, {}),
    Variant("pyramid", {**_LEVELS, "block": "32"}, {}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks methods_cpu``."""
    parser.add_argument("--grid", action="append", help="frames x rows x columns of tokens (repeatable)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="repeatable; default: all")
    parser.add_argument(
        "--chosen", action="store_true", help="methods that choose blocks by content, and what they pay"
    )
    parser.add_argument("--turns", type=int, default=5, help="times everything is measured")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    torch.set_num_threads(options.threads)
    facts = {**environment(), "load average": os.getloadavg()}
    rows = [
        row
        for dtype in options.dtype or DTYPES
        for grid in options.grid or GRIDS
        for row in measure(grid, dtype, options.turns, CHOSEN if options.chosen else VARIANTS)
    ]
    told = (
        "Choosing is part of every call; a mean of several tokens counts as one pair."
        if options.chosen
        else "Queries and keys are random: methods that choose by content choose at random. "
        "Mixture of block: a layer of temporal blocks."
    )
    text = (
        "\n\n".join(
            [
                "# Attention methods on the CPU",
                f"{machine_line(facts)} One attention call without a model, {HEADS} heads of {WIDTH} channels, best of "
                f"{options.turns} turns, wall-clock, dense attention (torch's) measured in the same turns. "
                f"Over the pairs: the time over (pairs executed x dense time). {told}",
                table(rows),
            ]
        )
        + "\n"
    )
    name = "methods_cpu_chosen" if options.chosen else "methods_cpu"
    report(name, {"environment": facts, "turns": options.turns, "rows": rows}, text, options.output)
    return 0


def measure(grid: str, dtype: str, turns: int, variants: Sequence[Variant] = VARIANTS) -> list[dict[str, object]]:
    """A row for dense attention and for every method that can serve the grid."""
    from genkit.attention import registry
    from genkit.attention.cache import PatchCache
    from genkit.attention.site import Site
    from genkit.layout import TokenLayout

    layout = TokenLayout.of_grid(*parse_size(grid))
    site = Site.of_layout(layout, heads=HEADS, step=10, steps=20)
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, layout.length, HEADS, WIDTH, generator=noise).to(DTYPES[dtype]) for _ in range(3))

    def dense() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    calls, sites = {"dense": dense}, {}
    for variant in variants:
        method, cache = registry.build(variant.method, variant.settings), PatchCache()
        if method.why_not(site) is None:
            calls[variant.describe()] = lambda method=method, cache=cache: method.attend(q, k, v, site, cache)
            sites[variant.describe()] = method, cache
    best = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for turn in range(turns + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn:  # the first one plans
                    best[name] = min(best[name], time.perf_counter() - start)
    rows = []
    for name, seconds in best.items():
        density = sites[name][0].density(site, sites[name][1]) if name in sites else None
        rows.append(
            {
                "grid": grid,
                "tokens": layout.length,
                "dtype": dtype,
                "method": name,
                "pairs executed": f"{density.executed:.3f}" if density else "1.000",
                "ms": f"{1e3 * seconds:.1f}",
                "speed": f"{best['dense'] / seconds:.2f}x",
                "over the pairs": f"{seconds / best['dense'] / density.executed:.2f}" if density else "",
            }
        )
    return rows
