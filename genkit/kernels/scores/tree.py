"""Scores found from the top down: whole runs of key blocks are judged by their mean, and only good ones looked into."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.scores.blocks import token_validity
from genkit.kernels.scores.estimate import _match_heads
from genkit.kernels.scores.pool import pool_blocks


@torch.no_grad()
def tree_scores(
    q: Tensor,
    k: Tensor,
    block_q: int,
    block_k: int,
    wanted: int,
    *,
    fan_out: int = 8,
    slack: float = 1.5,
    scale: float | None = None,
) -> Tensor:
    """Products of pooled queries and keys for the key blocks that a search from the top down reaches.

    A node stands for up to ``fan_out`` neighbouring nodes below it and has the mean of their real tokens as its key. On
    every level the best nodes are opened, enough for ``slack`` times the wanted blocks; with all of them opened the
    result is that of :func:`~genkit.kernels.scores.estimate.pooled_scores` without softmax.

    Args:
        q, k: (B, Nq, H, D), (B, Nk, Hk, D), neighbouring blocks near each other.
        block_q, block_k: tokens per block.
        wanted: key blocks that will be kept per query block.
        fan_out: nodes below a node, at least 2.
        slack: how many times ``wanted`` blocks are scored at the end, at least 1.
        scale: softmax scale, default 1/sqrt(D).

    Returns:
        (B, H, Mq, Mk) float32; ``-inf`` where the search did not come.

    Cost: O(wanted * log(Mk)) products per query block instead of Mk; worth it above some 2,000 blocks.

    Source: HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning. Its representative of a
    range is the first block; a mean is this project's choice for attention without causality.
    """
    if wanted < 1 or fan_out < 2 or slack < 1:
        raise UsageError(
            f"tree_scores needs wanted >= 1, fan_out >= 2 and slack >= 1, got {wanted}, {fan_out} and {slack}"
        )
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    queries = pool_blocks(q, block_q).transpose(1, 2) * factor
    keys = _match_heads(pool_blocks(k, block_k), q.shape[2]).transpose(1, 2)
    weight = token_validity(k.shape[1], block_k, None, k.device).sum(1).to(keys.dtype)
    levels = _levels(keys, weight, fan_out)
    b, h, mq, _ = queries.shape
    known = torch.arange(levels[-1].shape[2], device=q.device).expand(b, h, mq, -1)
    for depth in range(len(levels) - 1, -1, -1):
        nodes = levels[depth]
        score = _products(queries, nodes, known)
        if depth == 0:
            everything = score.new_full((b, h, mq, nodes.shape[2] + 1), -torch.inf)
            return everything.scatter_(3, known.clamp(max=nodes.shape[2]), score)[..., :-1]
        opened = min(known.shape[3], max(1, ceil(slack * wanted / fan_out**depth)) + 1)
        best = score.topk(opened, dim=-1).indices
        parents = known.gather(-1, best)
        below = parents[..., None] * fan_out + torch.arange(fan_out, device=q.device)
        # numbers beyond the last node stand for none; children of such a one are none, too
        known = below.flatten(3).clamp(max=levels[depth - 1].shape[2])
    raise AssertionError("a tree has a level 0")


def _levels(keys: Tensor, weight: Tensor, fan_out: int) -> list[Tensor]:
    """Means (B, H, nodes, D) of every level, from the blocks (0) up to at most ``fan_out`` ** 2 nodes."""
    levels = [keys]
    while levels[-1].shape[2] > fan_out**2:
        keys, nodes = levels[-1], -(-levels[-1].shape[2] // fan_out)
        gap = nodes * fan_out - keys.shape[2]
        weight = torch.nn.functional.pad(weight, (0, gap)).unflatten(0, (nodes, fan_out))
        padded = torch.nn.functional.pad(keys, (0, 0, 0, gap)).unflatten(2, (nodes, fan_out))
        total = weight.sum(1)
        levels.append((padded * weight[..., None]).sum(3) / total[:, None].clamp(min=1))
        weight = total
    return levels


def _products(queries: Tensor, nodes: Tensor, known: Tensor) -> Tensor:
    """Products (B, H, Mq, C) of queries with the nodes ``known`` (B, H, Mq, C); -inf for numbers beyond the last."""
    count = nodes.shape[2]
    rows = known.clamp(max=count - 1).flatten(2)[..., None].expand(-1, -1, -1, nodes.shape[3])
    chosen = nodes.gather(2, rows).unflatten(2, known.shape[2:])
    score = torch.einsum("bhqd,bhqcd->bhqc", queries, chosen)
    return score.masked_fill(known >= count, -torch.inf)
