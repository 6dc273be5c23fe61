"""Which key blocks a query token takes in mixture-of-block attention: gates from block means, top-k or a threshold.

Gates are plain inner products of a query with the mean key of a block (arXiv 2506.23858). The choice carries no
gradient. It repeats bit for bit on every device: under gradient checkpointing the recomputed pass must choose alike, so
no sum here may depend on the order in which a GPU's threads arrive.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import torch

from genkit.kernels.block_lists import BlockLists, Budget, Kept, select

SCOPES = ("query", "block", "head", "all")
_FLAT = 1e-6  # gates whose spread is below this say nothing


def block_means(k: torch.Tensor, block_of: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Mean key of every block in float32: k (B, N, Hk, D), block_of (N,) int64, own bool (N, C) -> (B, C, Hk, D)."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    if k.device.type != "cpu":
        return means_by_product(k.to(wide), own)
    blocks = own.shape[1]
    sums = k.new_zeros((k.shape[0], blocks, *k.shape[2:]), dtype=wide).index_add(1, block_of, k.to(wide))
    ones = torch.ones(len(block_of), dtype=wide, device=k.device)
    counts = torch.zeros(blocks, dtype=wide, device=k.device).index_add(0, block_of, ones)
    return sums / counts[:, None, None]


def means_by_product(k: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """:func:`block_means` as a product with the table of members, which adds up in the same order every time."""
    member = own.to(k.dtype)
    return torch.einsum("bnhd,nc->bchd", k, member / member.sum(0))


def running_sum(shares: torch.Tensor) -> torch.Tensor:
    """Running sum along the last axis of numbers from 0 to 1, in whole numbers of 2^-31, which add up in any order."""
    return (shares.double() * 2**31).long().cumsum(-1).double() * 2**-31


def gates(q: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Inner products of queries (B, N, H, D) with block means (B, C, Hk, D): (B, H, N, C) float32, unscaled."""
    group = q.shape[2] // means.shape[2]
    keys = means.repeat_interleave(group, 2) if group > 1 else means
    return torch.einsum("bnhd,bchd->bhnc", q.to(means.dtype), keys)


def _grouped(x: torch.Tensor, scope: str) -> torch.Tensor:
    """(B, H, N, C) with the entries that share one budget in the last axis."""
    if scope == "query":
        return x
    if scope == "block":
        return x.permute(0, 3, 1, 2).flatten(2)
    return x.flatten(2) if scope == "head" else x.flatten(1)


def _ungrouped(x: torch.Tensor, scope: str, shape: torch.Size) -> torch.Tensor:
    if scope == "block":
        return x.unflatten(2, (shape[1], shape[2])).permute(0, 2, 3, 1)
    return x.reshape(shape)


def _best(values: torch.Tensor, count: int) -> torch.Tensor:
    """bool like ``values``: the ``count`` largest entries of the last axis; NaN counts as inf, ties go to the lower
    index."""
    values = values.nan_to_num(torch.inf, torch.inf, -torch.inf)
    if values.device.type == "cpu":
        place = values.shape[-1] - count
        # a fifth of the time of torch's topk
        least = torch.from_numpy(np.partition(values, place, axis=-1)[..., place : place + 1])
        enough = values >= least
        if np.count_nonzero(enough) == least.numel() * count:
            return enough  # no ties
    else:
        least = values.topk(count, sorted=False).values.amin(-1, keepdim=True)
    above, level = values > least, values == least
    room = count - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1, dtype=torch.int32) <= room))


@torch.no_grad()
def select_top_k(gate: torch.Tensor, own: torch.Tensor, count: int, scope: str) -> torch.Tensor:
    """Own blocks first, then the best others, ``count`` entries per query on average.

    Args:
        gate: (B, H, N, C). own: bool (N, C), the block each query lies in.
        scope: who shares a budget: ``"query"`` (``count`` blocks), ``"head"`` (``count * N``) or ``"all"``.

    Returns:
        bool (B, H, N, C).
    """
    budget = count * {"query": 1, "head": gate.shape[2], "all": gate.shape[1] * gate.shape[2]}[scope]
    chosen = _best(_grouped(gate.masked_fill(own, torch.inf), scope), budget)
    return _ungrouped(chosen, scope, gate.shape) | own


@torch.no_grad()
def list_top_k(gate: torch.Tensor, own: Kept, count: int) -> BlockLists:
    """:func:`select_top_k` with a budget for every query as lists (B, H, N, W), made without a look at the device."""
    return select(gate, Budget(keep=count), own)


@torch.no_grad()
def select_threshold(gate: torch.Tensor, own: torch.Tensor, tau: float, scope: str, cap: float | None) -> torch.Tensor:
    """Own blocks, and the best others until they hold the share ``tau`` of all similarity together.

    Similarity is the gate, min-max normalised over the entries that share a budget. At least one other entry is taken;
    all of them when ``tau`` is never reached; none when the gates are flat.

    Args:
        gate: (B, H, N, C). own: bool (N, C). tau: share wanted.
        scope: the entries that share one budget: of a query (in one head), of a block (all its queries and heads, as
            published), of a head, or all of a sample.
        cap: largest share of the pairs (query, block) to keep, own blocks included; None = no cap.

    Returns:
        bool (B, H, N, C).
    """
    values = _grouped(gate, scope)
    mine = _grouped(own.expand_as(gate), scope)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    flat = high - low <= _FLAT
    weight = (values - low) / (high - low).clamp(min=_FLAT)
    total = weight.sum(-1, keepdim=True).clamp(min=1e-30)
    need = (tau - (weight * mine).sum(-1, keepdim=True) / total).clamp(min=0)
    others = weight.masked_fill(mine, -1)
    ranked, order = others.sort(dim=-1, descending=True, stable=True)
    positive = ranked.clamp(min=0)
    mass = (positive.cumsum(-1) if gate.device.type == "cpu" else running_sum(positive)) / total
    entries = values.shape[-1]
    available = entries - mine.sum(-1, keepdim=True)
    reached = (mass < need).sum(-1, keepdim=True) + 1
    count = torch.where(reached > available, available, reached.clamp(min=1))
    if cap is not None:
        count = torch.minimum(count, (ceil(cap * entries) - mine.sum(-1, keepdim=True)).clamp(min=0))
    count = torch.where(flat, 0, count)
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(entries, device=gate.device).expand_as(order))
    return _ungrouped((rank < count) & ~mine, scope, gate.shape) | own
