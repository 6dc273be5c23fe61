"""How well block plans fit the grids of real models: executed over visible pairs, by counting. No GPU, no clock."""

from __future__ import annotations

import argparse
from itertools import product
from math import prod
from pathlib import Path

from benchmarks.environment import RESULTS, report, table
from benchmarks.kernels.problems import MODELS
from genkit.attention.grid_windows import GridWindows
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.plan_facts import PlanFacts, plan_facts
from genkit.attention.static import executed_share
from genkit.attention.strips import BLOCK_Q, BLOCKS_K, order_of
from genkit.attention.tiles import visited_tiles
from genkit.kernels import BlockPlan
from genkit.layout import TokenLayout

MOST = 1.35  # executed over visible pairs of the first table
WINDOWS = {
    "all frames, half of height and width": {},
    "half of every axis": {"size": 0.5},
    "7 x 15 x 15": {"size": (7, 15, 15)},
    "all frames, 24 x 24, stride 8": {"size": ("all", 24, 24), "stride": (1, 8, 8)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks plans``."""
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Count, print and write the report; 1 when a plan of the default windows wastes more than allowed."""
    counted = []
    for (windows, settings), model in product(WINDOWS.items(), options.models):
        grid, text, *_ = MODELS[model]
        if settings and grid[0] == 1:
            continue  # windows in time are the point of the others
        method, layout = Neighborhood(**settings), TokenLayout.of_grid(*grid, text=text)
        made = {
            "windows": windows,
            "model": model,
            "layout": layout,
            "boxes": _boxes(method.on(grid), layout),
            "gpu": plan_facts(method, layout, "cuda"),
            "cpu": plan_facts(method, layout, "cpu"),
        }
        counted.append(made)
    over = [made["model"] for made in counted if made["windows"] == next(iter(WINDOWS)) and made["gpu"].waste > MOST]
    report("plans", {"plans": [_plain(made) for made in counted]}, _markdown(counted), options.output)
    if over:
        print(f"executed over visible pairs above {MOST}: {', '.join(over)}")
    return 1 if over else 0


def _boxes(windows: GridWindows, layout: TokenLayout) -> PlanFacts:
    """The best plan whose blocks are boxes with powers of two as sides, padded at the border."""
    tables = windows.tables
    best = None
    for block_k in BLOCKS_K:
        for query, key in product(_powers(BLOCK_Q), _powers(block_k)):
            pairs = visited_tiles(tables, query, key) * BLOCK_Q * block_k
            if best is None or pairs < best[0]:
                best = pairs, query, key
    _, query, key = best
    segments = [(segment.name, segment.length) for segment in layout.segments]
    orders = (order_of(tables, tile, prod(tile), segments) for tile in (query, key))
    plan = BlockPlan.from_rule(windows.rule(layout), order=next(orders), key_order=next(orders), check=False)
    partial, full = int(plan.partial_count.sum()), int(plan.full_count.sum())
    return PlanFacts(
        "cuda",
        f"boxes of {' x '.join(map(str, query))} by {' x '.join(map(str, key))}",
        plan.block_q,
        plan.block_k,
        layout.length / (plan.blocks_q * plan.block_q),
        windows.pairs(layout) / layout.length**2,
        executed_share(plan),
        partial / (partial + full),
    )


def _powers(tokens: int) -> list[tuple[int, int, int]]:
    sides = [1 << power for power in range(tokens.bit_length())]
    return [sides_of for sides_of in product(sides, repeat=3) if prod(sides_of) == tokens]


def _plain(made: dict) -> dict:
    facts = {name: vars(made[name]) | {"waste": made[name].waste} for name in ("boxes", "gpu", "cpu")}
    layout = made["layout"]
    return {"windows": made["windows"], "model": made["model"], "grid": layout.grid, "tokens": layout.length, **facts}


def _markdown(counted: list[dict]) -> str:
    parts = [
        "# Plans of neighborhood attention on the grids of real models",
        "",
        "Pairs of tokens in visited blocks, padding included, over the pairs that are visible (1 is best). Counted, so "
        "the same on every machine. Before: blocks of a GPU are the best boxes with powers of two as sides, padded at "
        "the border. Now: they are cut from a walk in strips. In brackets the share of the visited blocks that is "
        "masked token by token, and how full query blocks are.",
    ]
    for windows in dict.fromkeys(made["windows"] for made in counted):
        rows = [_row(made) for made in counted if made["windows"] == windows]
        parts += ["", f"## Windows: {windows}", "", table(rows)]
    return "\n".join([*parts, ""])


def _row(made: dict) -> dict[str, str]:
    layout = made["layout"]
    others = layout.length - layout.grid_length
    row = {
        "model": made["model"],
        "grid": " x ".join(map(str, layout.grid)) + (f" + {others}" if others else ""),
        "visible": f"{made['gpu'].visible:.1%}",
    }
    for name, head in (("boxes", "GPU before"), ("gpu", "GPU now"), ("cpu", "CPU")):
        facts = made[name]
        row[head] = f"{facts.waste:.2f} ({facts.partial:.0%} partial, {facts.filled:.0%} full)"
    return row | {"GPU before: blocks": made["boxes"].arrangement, "GPU now: blocks": made["gpu"].arrangement}
