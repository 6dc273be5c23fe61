"""Estimates of how much softmax mass each key block receives from each query block."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from genkit.errors import UsageError, explain
from genkit.kernels.scores.blocks import split_blocks, token_validity
from genkit.kernels.scores.pool import pool_blocks

NORMALISATIONS = ("none", "softmax")
_ROWS_BYTES = 2 << 20  # scores at once on a CPU, about what its nearer caches hold
_LEAST_ROWS = 64  # of them, below which products are slow


def _match_heads(k: Tensor, heads: int) -> Tensor:
    """Repeat key heads so that query head h meets key head h // (H / Hk)."""
    if heads % k.shape[2]:
        raise UsageError(f"query heads must be a multiple of key heads, got {heads} and {k.shape[2]}")
    return k if k.shape[2] == heads else k.repeat_interleave(heads // k.shape[2], 2)


def _normalised(scores: Tensor, normalise: str) -> Tensor:
    if normalise not in NORMALISATIONS:
        raise UsageError(explain("normalise", normalise, NORMALISATIONS))
    return scores.softmax(-1) if normalise == "softmax" else scores


@torch.no_grad()
def pooled_scores(
    q: Tensor,
    k: Tensor,
    block_q: int,
    block_k: int,
    *,
    q_valid: Tensor | None = None,
    k_valid: Tensor | None = None,
    scale: float | None = None,
    normalise: str = "softmax",
    centre_k: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Score of every block pair from the means of its tokens: the cheapest estimate, 1 / (2 block^2) of dense
    attention.

    Args:
        q, k: (B, Nq, H, D) and (B, Nk, Hk, D), as they enter the attention (after RoPE).
        block_q, block_k: tokens per block; ragged tails are averaged over their real tokens.
        q_valid, k_valid: optional (Mq,) and (Mk,) counts of real tokens at the front of each block.
        scale: softmax scale, default 1/sqrt(D).
        normalise: ``"softmax"`` gives masses that sum to 1 over keys; ``"none"`` the raw scaled products.
        centre_k: subtract the mean key first. It changes no ranking, only keeps low-precision products small.
        backend: who takes the means, see :func:`pool_blocks`; the products and the softmax are torch's.

    Returns:
        (B, H, Mq, Mk) float32, larger means keep; key blocks without a real token are ``-inf`` (mass 0).
    """
    pooled_q = pool_blocks(q, block_q, q_valid, backend=backend)
    pooled_k = _match_heads(pool_blocks(k, block_k, k_valid, backend=backend), q.shape[2])
    if centre_k:
        pooled_k = pooled_k - pooled_k.mean(1, keepdim=True)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bqhd,bkhd->bhqk", pooled_q * factor, pooled_k)
    if k_valid is not None:
        empty = ~token_validity(k.shape[1], block_k, k_valid, k.device).any(1)
        scores = scores.masked_fill_(empty, -torch.inf)
    return _normalised(scores, normalise)


@torch.no_grad()
def antidiagonal_scores(
    q: Tensor,
    k: Tensor,
    block: int,
    stride: int = 8,
    *,
    pairing: str = "aligned",
    scale: float | None = None,
) -> Tensor:
    """Mass per block pair from one product per ``stride`` x ``stride`` cell pair, 1 / (2 stride) of dense attention.

    Args:
        q, k: (B, N, H, D), (B, N, Hk, D).
        block: tokens per block, a multiple of ``stride``.
        stride: cell size s; every cell is represented by the mean of s of its s*s products.
        pairing: ``"aligned"`` pairs equal places of the two cells (right when a block is a box of the grid);
            ``"reversed"`` pairs opposite places, the antidiagonals of XAttention, meant for raster order.
        scale: softmax scale, default 1/sqrt(D).

    Returns:
        (B, H, Mq, Mk) float32; every row of full blocks sums to ``block / stride``.
    """
    if pairing not in ("aligned", "reversed"):
        raise UsageError(explain("pairing", pairing, ("aligned", "reversed")))
    if stride < 1 or block % stride:
        raise UsageError(f"block must be a multiple of stride, got block {block} and stride {stride}")
    factor = (q.shape[-1] ** -0.5 if scale is None else scale) / stride
    cells_q, real_q = _cells(q, block, stride)
    cells_k, real_k = _cells(_match_heads(k, q.shape[2]), block, stride)
    if pairing == "reversed":
        cells_q = cells_q.flip(3)
    cells_q, cells_k = (x.transpose(3, 4).flatten(4) for x in (cells_q, cells_k))
    return place_weights(cells_q * factor, real_q, cells_k, real_k, "mass", k.shape[1] % block > 0).sum(2)


def _cells(x: Tensor, block: int, stride: int) -> tuple[Tensor, Tensor]:
    """(B, N, H, D) to cells (B, block/stride, M, stride, H, D) and which of them hold a real token. Places within a
    block come first, so that reductions over them run along whole rows."""
    cells = split_blocks(x.float(), block).unflatten(2, (-1, stride)).transpose(1, 2)
    real = token_validity(x.shape[1], block, None, x.device).unflatten(1, (-1, stride)).any(2)
    return cells, real.T


@torch.no_grad()
def sampled_scores(
    q: Tensor,
    k: Tensor,
    block_q: int,
    block_k: int,
    *,
    samples_q: int = 8,
    samples_k: int = 8,
    reduction: str = "mass",
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Score from a few tokens per block: softmax over all sampled keys, reduced over each block pair.

    Args:
        q, k: (B, Nq, H, D), (B, Nk, Hk, D).
        block_q, block_k: tokens per block.
        samples_q, samples_k: tokens drawn per block, the same places in every block; cost is
            samples_q * samples_k / (2 * block_q * block_k) of dense attention.
        reduction: ``"mass"``: summed over keys, averaged over queries (rows sum to 1); ``"max"``: the largest sampled
            weight (the rule of Pyramid Sparse Attention); ``"row_max"``: the largest weight after scaling every sampled
            row by its own maximum instead of its sum.
        seed: seed of the draw; equal seeds give equal scores.
        scale: softmax scale, default 1/sqrt(D).

    Returns:
        (B, H, Mq, Mk) float32.
    """
    if reduction not in ("mass", "max", "row_max"):
        raise UsageError(explain("reduction", reduction, ("mass", "max", "row_max")))
    generator = torch.Generator().manual_seed(seed)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    some_q, real_q = _sample(q, block_q, samples_q, generator)
    some_k, real_k = _sample(k, block_k, samples_k, generator)
    some_k = _match_heads(some_k.flatten(1, 2), q.shape[2]).unflatten(1, real_k.shape)
    weights = place_weights(some_q * factor, real_q, some_k, real_k, reduction, k.shape[1] % block_k > 0)
    return weights.sum(2) / real_q.sum(0).clamp(min=1)[:, None] if reduction == "mass" else weights.amax(2)


def place_weights(q: Tensor, real_q: Tensor, k: Tensor, real_k: Tensor, reduction: str, ragged: bool) -> Tensor:
    """Softmax weights of the keys of every block, reduced over its keys.

    Places within a block come first and blocks last, so that the reductions run along whole rows. On a CPU a few rows
    are made at a time.

    Args:
        q, k: (B, places, M, H, D), q with the scale. real_q, real_k: (places, M), which of them there are.
        reduction: see :func:`sampled_scores`. ragged: whether some keys may not be there.

    Returns:
        (B, H, places of queries, Mq, Mk) float32, 0 for queries that there are not.
    """
    places, count = real_k.shape
    hidden = ~real_k.flatten() if ragged else None
    queries, keys = q.flatten(1, 2), k.flatten(1, 2)
    rows = queries.shape[1]
    if q.device.type == "cpu":
        rows = max(_LEAST_ROWS, _ROWS_BYTES // (4 * q.shape[0] * q.shape[3] * places * count))
    parts = [_by_block(part, keys, hidden, places, reduction) for part in queries.split(rows, 1)]
    return (torch.cat(parts, 2) * real_q.flatten()[:, None]).unflatten(2, real_q.shape)


def _by_block(q: Tensor, k: Tensor, hidden: Tensor | None, places: int, reduction: str) -> Tensor:
    """(B, H, rows, key blocks): of every query (B, rows, H, D) the weights of the keys (B, places * blocks, H, D) of a
    block, reduced."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    if reduction == "mass":
        return scores.softmax(-1).unflatten(-1, (places, -1)).sum(-2)
    best = scores.unflatten(-1, (places, -1)).amax(-2)  # a weight is largest where its score is
    top = best.amax(-1, keepdim=True)
    if reduction == "row_max":
        return (best - top).exp_()
    total = (scores - top).exp_().sum(-1, keepdim=True)
    return (best - top).exp_() / total


@lru_cache(maxsize=64)
def _kept_on(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers on a device. Kept, because a copy from the host waits."""
    return torch.tensor(places, device=device)


def _sample(x: Tensor, block: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random places of every block, wrapped into its real tokens: (B, samples, M, H, D), and which of them
    (samples, M) are real."""
    if not 1 <= samples <= block:
        raise UsageError(f"samples per block must lie between 1 and the block size {block}, got {samples}")
    places = torch.randperm(block, generator=generator)[:samples].sort().values
    if x.device.type != "cpu":
        places = _kept_on(tuple(places.tolist()), x.device)
    length = x.shape[1]
    starts = torch.arange(0, length, block, device=x.device)
    # A short block has fewer tokens than places: wrap into it and drop the repeats, so that no token counts twice.
    wrapped = places[:, None] % (length - starts).clamp(max=block)
    first = torch.ones_like(wrapped, dtype=torch.bool)
    if length % block:  # only the last block is short
        short = wrapped[:, -1]
        first[:, -1] = ~(short[:, None] == short).tril(-1).any(1)
    chosen = x.index_select(1, (starts + wrapped).flatten()).float()
    return chosen.unflatten(1, (samples, len(starts))), first


@torch.no_grad()
def block_mass(q: Tensor, k: Tensor, block_q: int, block_k: int, *, scale: float | None = None) -> Tensor:
    """The true mean softmax mass of every block pair, (B, H, Mq, Mk) float32. Costs a dense attention: for measuring
    only.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    keys = _match_heads(k, q.shape[2]).float()
    real_k = token_validity(k.shape[1], block_k, None, k.device).reshape(-1)
    padded = split_blocks(keys, block_k).flatten(1, 2)
    rows = []
    for start in range(0, q.shape[1], block_q):
        tile = q[:, start : start + block_q].float() * factor
        weights = torch.einsum("bqhd,bkhd->bhqk", tile, padded).masked_fill(~real_k, -torch.inf).softmax(-1)
        rows.append(weights.mean(2).unflatten(-1, (-1, block_k)).sum(-1))
    return torch.stack(rows, 2)
