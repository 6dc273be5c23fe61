"""Queries, keys and values of a dense run, and what a method makes of them: mass kept, error, densities, times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

#: Queries of a call whose mass is added up; which ones, a seed decides.
_ROWS = 256


class Calls:
    """Attention calls of a dense run: what every method is measured on.

    Args:
        found: (q, k, v, site) of each, as the benchmark of recall takes them.
    """

    def __init__(self, found: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]]):
        self.found = found
        generator = torch.Generator().manual_seed(0)
        self.rows, self.weights, self.dense = [], [], []
        for q, k, v, _ in found:
            rows = torch.randperm(q.shape[1], generator=generator)[:_ROWS].sort().values
            scores = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], k) * q.shape[-1] ** -0.5
            self.rows.append(rows)
            self.weights.append(scores.softmax(-1))
            self.dense.append(_dense(q, k, v))


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@torch.no_grad()
def measure(method: Any, calls: Calls) -> dict[str, float]:
    """Means over the calls: mass kept, error of the output and densities in percent; medians of processor times in ms.

    Mass that is read through means does not count. Dense attention is timed in turn with the method; the first call
    of the method, which plans, is not timed.
    """
    from genkit.attention.cache import PatchCache

    cache = PatchCache()
    found: dict[str, list[float]] = {}
    for number, (q, k, v, site) in enumerate(calls.found):
        rows, weights, dense = calls.rows[number], calls.weights[number], calls.dense[number]
        out = method.attend(q, k, v, site, cache)
        _note(found, "error", 100 * float((out - dense).norm() / dense.norm()))
        density = method.density(site, cache)
        _note(found, "computed", 100 * density.computed)
        _note(found, "executed", 100 * density.executed)
        if method.name != "pyramid":
            seen = method.read_rows(q, k, v, site, cache, rows)
            _note(found, "mass", 100 * float((weights * seen).sum(-1).mean()))
        _note(found, "call ms", _timed(lambda q=q, k=k, v=v, site=site: method.attend(q, k, v, site, cache)))
        _note(found, "dense ms", _timed(lambda q=q, k=k, v=v: _dense(q, k, v)))
        if hasattr(method, "blocks_on"):
            _note(found, "choosing ms", _choosing(method, q, k, site))
    means = {name: sum(values) / len(values) for name, values in found.items() if not name.endswith(" ms")}
    return means | {n: float(torch.tensor(x).median()) for n, x in found.items() if n.endswith(" ms")}


def _choosing(method: Any, q: torch.Tensor, k: torch.Tensor, site: Any) -> float:
    """Milliseconds of choosing alone, the order by content included."""
    blocks = method.blocks_on(site.layout.grid)
    start, stop = site.layout.grid_span
    q, k = (x[:, start:stop].index_select(1, blocks.permutation.order) for x in (q, k))
    if method.name == "pyramid":
        return _timed(lambda: method.levels(q, k))
    if method.score == "kmeans":
        return _timed(lambda: (method._orders(q, k), method.select_blocks(q, k, blocks)))
    return _timed(lambda: method.select_blocks(q, k, blocks))


def _timed(call: Any) -> float:
    """Milliseconds of processor time: other work on the machine counts little."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def _note(found: dict[str, list[float]], name: str, value: float) -> None:
    found.setdefault(name, []).append(value)
