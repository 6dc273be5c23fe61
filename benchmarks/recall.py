"""How much of dense attention the pairs of each method hold, on queries and keys of real runs of a shipped model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import parse_size, tell

#: Methods and settings, in groups of about the same density.
VARIANTS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "a quarter": (
        ("neighborhood", {"size": "allx0.5x0.5", "stride": "1x3x3"}),
        ("neighborhood", {"size": "allx0.5x0.5"}),
        ("neighborhood", {"size": "3x0.75x0.75"}),
        ("radial", {"near": "decay", "sink": "false", "decay_factor": "0.3"}),
        ("mixture_of_block", {"temporal": "1", "spatial": "4,4", "box": "1,6,6"}),
        *(
            ("block_select", {"keep": "0.25"} | settings)
            for settings in (
                {"score": "pooled"},
                {"score": "pooled", "block": "32"},
                {"score": "pooled", "scope": "head"},
                {"score": "sampled"},
                {"score": "antidiagonal"},
                {"score": "proxy", "groups": "2"},
                {"score": "tree"},
                {"score": "offset"},
                {"score": "vertical"},
                {"score": "kmeans"},
                {"score": "pooled", "tail": "16"},
            )
        ),
        ("pyramid", {}),
    ),
    "a tenth": (
        ("neighborhood", {"size": "allx0.33x0.33"}),
        ("block_select", {"keep": "0.1"}),
        ("block_select", {"keep": "0.1", "block": "32"}),
        ("block_select", {"keep": "0.1", "score": "antidiagonal"}),
        ("block_select", {"keep": "0.1", "score": "kmeans"}),
        ("block_select", {"keep": "0.1", "tail": "16"}),
        ("pyramid", {"mode": "quantile"}),
        ("block_select", {"keep": "0.2"}),
    ),
    "by mass": (
        ("block_select", {"top_p": "0.9"}),
        *(
            ("block_select", {"preset": preset})
            for preset in ("xattention", "proxyattn", "hip", "vsa", "draft", "sparge", "svg", "svg2", "asa")
        ),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks recall``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--size", default="25x192x192", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--at", default="3,6,9", help="steps whose queries and keys are looked at")
    parser.add_argument("--groups", default=",".join(VARIANTS), help="of methods, separated by commas")
    parser.add_argument("--repeat", type=int, default=3, help="times a call is timed")
    parser.add_argument("--keys", type=Path, help="weights of block_select's score=keys, which is then measured, too")
    parser.add_argument("--name", default="recall", help="of the report")
    parser.add_argument("--output", type=Path, default=RESULTS)


#: Shares that ``--keys`` is measured at, by group.
KEYS = {"a quarter": ("0.25",), "a tenth": ("0.1",)}


def _variants(group: str, keys: Path | None) -> tuple[tuple[str, dict[str, str]], ...]:
    shares = KEYS.get(group, ()) if keys else ()
    more = tuple(("block_select", {"keep": keep, "score": "keys", "weights": str(keys)}) for keep in shares)
    return (*VARIANTS[group], *more)


def _cache(pipeline: Any, method: Any) -> Any:
    """What a method computes with outside of a run: its weights, if it has some."""
    import genkit
    from genkit.attention.cache import PatchCache

    if not getattr(method, "has_weights", False):
        return PatchCache()
    with genkit.patch(pipeline, method) as handle:
        return handle.cache


@dataclass
class Row:
    """What was measured of a method, an entry per call."""

    recall: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    executed: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.attention import registry
    from genkit.attention.cache import PatchCache
    from genkit.evaluation.toy import ClipRequest, draw_prompts, generate_clips

    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(*parse_size(options.size), options.steps, batch=1)
    wanted = [int(step) for step in options.at.split(",")]
    groups = {name: _variants(name, options.keys) for name in options.groups.split(",")}
    rows: dict[str, dict[str, Row]] = {name: {} for name in groups}
    taken, caches = taker(wanted), {}
    for index, (_, caption) in enumerate(draw_prompts("train", options.prompts, seed=77)):
        calls = taken()
        with genkit.patch(pipeline, calls, schedule=genkit.Schedule(branches="cond")):
            generate_clips(pipeline, [caption], request, 500 + index)
        for number, (q, k, v, site) in enumerate(calls.found):
            weights = _weights(q, k)
            for name, variants in groups.items():
                for method, settings in variants:
                    built = registry.build(method, settings)
                    row = rows[name].setdefault(_told(built), Row())
                    if built not in caches:
                        caches[built] = _cache(pipeline, built)
                    cache = caches[built] if getattr(built, "has_weights", False) else PatchCache()
                    _measure(built, (q, k, v), site, weights, row, options.repeat if number == 0 else 0, cache)
        tell("prompts", index + 1, options.prompts)
    facts = environment()
    shown = {name: [_shown(method, row) for method, row in found.items()] for name, found in rows.items()}
    data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps, "rows": shown}
    data |= {"prompts": options.prompts, "at": wanted}
    report(options.name, data, _text(options, facts, shown, site), options.output)
    return 0


def taker(steps: list[int]) -> Callable:
    """A method that computes nothing: it takes queries, keys and values of some steps and lets the model go on."""
    from genkit.evaluation.inspection.taker import Taker

    @dataclass(frozen=True)
    class Taken(Taker):
        """Takes what it is shown."""

        take: Any = field(default=None, compare=False)
        wanted: Any = field(default=lambda site: site.step in steps, compare=False)
        negative: bool = True
        found: list = field(default_factory=list, compare=False)

        def __post_init__(self):
            object.__setattr__(self, "take", self._keep)

        def _keep(self, q, k, v, site):
            self.found.append((*(x.float().clone() for x in (q, k, v)), replace(site, key_mask=None)))

    return Taken


def _weights(q, k):
    import torch

    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1)


def _told(method: Any) -> str:
    """The method without the place of its weights."""
    return replace(method, weights=None).describe() if getattr(method, "weights", None) else method.describe()


def _pairs(method, q, k, v, site, cache):
    """The pairs that are read, None where means are, too."""
    import torch

    return None if method.name == "pyramid" else method.read_rows(q, k, v, site, cache, torch.arange(q.shape[1]))


def _measure(method, tensors, site, weights, row: Row, repeat: int, cache) -> None:
    """One call: mass kept, densities, error of the output; times where ``repeat`` is not 0."""
    import torch

    q, k, v = tensors
    with torch.no_grad():
        pairs = _pairs(method, q, k, v, site, cache)
        if pairs is not None:
            row.recall.append(float((weights * pairs).sum(-1).mean()))
        dense = torch.einsum("bhqk,bkhd->bqhd", weights, v)
        out = method.attend(q, k, v, site, cache)
        row.error.append(float((out - dense).norm() / dense.norm()))
        density = method.density(site, cache)
        row.density.append(density.computed)
        row.executed.append(density.executed)
        for _ in range(repeat):
            start = time.perf_counter()
            method.attend(q, k, v, site, cache)
            row.call.append(time.perf_counter() - start)
            start = time.perf_counter()
            torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
            row.dense.append(time.perf_counter() - start)
            if hasattr(method, "blocks_on") and getattr(method, "score", "") != "keys":
                blocks = method.blocks_on(site.layout.grid)
                moved = [x.index_select(1, blocks.permutation.order) for x in (q, k)]
                start = time.perf_counter()
                if method.name == "pyramid":
                    method.levels(*moved)
                else:
                    method.select_blocks(*moved, blocks)
                row.select.append(time.perf_counter() - start)


def _shown(method: str, row: Row) -> dict[str, object]:
    cell = {"method": method, "density computed": f"{np.mean(row.density):.3f}"}
    cell["density executed"] = f"{np.mean(row.executed):.3f}"
    for name, values in (("mass kept", row.recall), ("error of the output", row.error)):
        error = np.std(values) / max(1, len(values) - 1) ** 0.5
        cell[name] = f"{np.mean(values):.3f} ± {error:.3f}" if values else ""
    cell["call ms"] = f"{1e3 * np.median(row.call):.1f}" if row.call else ""
    cell["of it choosing ms"] = f"{1e3 * np.median(row.select):.1f}" if row.select else ""
    cell["dense ms"] = f"{1e3 * np.median(row.dense):.1f}" if row.dense else ""
    return cell


def _text(options: argparse.Namespace, facts: dict, rows: dict[str, list[dict[str, object]]], site) -> str:
    parts = [
        "# Attention mass that methods keep",
        "",
        machine_line(facts),
        f"{options.model}, {options.size} ({site.layout.length:,} tokens), {options.prompts} prompts, {options.steps} "
        f"steps of dense attention; queries, keys and values of steps {options.at} in every layer, the half with the "
        "prompt. Mass kept: mean over layers, heads and queries of the share of the dense softmax that falls on pairs "
        "the method reads (means of a tail do not count). Error of the output: norm of the difference to dense "
        "attention over the norm of dense attention. Errors are standard errors over the calls, which come from few "
        "prompts. Times in float32 on the first call of every prompt, dense attention in turn with each method.",
        "",
    ]
    for name, found in rows.items():
        parts += [f"## {name[0].upper()}{name[1:]}", "", table(found), ""]
    return "\n".join(parts)
