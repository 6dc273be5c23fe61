"""Selection of key blocks from scores: top-k, cumulative mass (top-p) or threshold, with floors, caps and forced
blocks.
"""

from __future__ import annotations

from math import ceil, floor

import torch
from torch import Tensor

from genkit.errors import UsageError


def own_blocks(
    q_blocks: int, k_blocks: int, *, block_q: int = 1, block_k: int = 1, device: torch.device | None = None
) -> Tensor:
    """Bool (1, 1, Mq, Mk): key blocks that overlap the query block's own tokens, for self-attention."""
    q_start = torch.arange(q_blocks, device=device) * block_q
    k_start = torch.arange(k_blocks, device=device) * block_k
    overlap = (k_start < (q_start + block_q)[:, None]) & ((k_start + block_k) > q_start[:, None])
    return overlap[None, None]


@torch.no_grad()
def select_top_k(
    scores: Tensor, count: int | None = None, *, share: float | None = None, always: Tensor | None = None
) -> Tensor:
    """Keep the best ``count`` key blocks of every row, or a ``share`` of them.

    Args:
        scores: (B|1, H|1, Mq, Mk), larger means keep, ``-inf`` means forbidden. Ties go to the lower index.
        count: blocks per row. Give either this or ``share``.
        share: fraction of Mk in (0, 1], rounded up to at least one block.
        always: bool, broadcast to ``scores``: blocks kept in any case. They count towards the budget and may exceed it.

    Returns:
        bool like ``scores``. A row has fewer than ``count`` blocks only when fewer are allowed.
    """
    if (count is None) == (share is None):
        raise UsageError(
            "select_top_k needs either count= (blocks) or share= (fraction of all key blocks), not both or neither"
        )
    if share is not None:
        if not 0 < share <= 1:
            raise UsageError(f"share must lie in (0, 1], got {share}")
        count = max(1, ceil(share * scores.shape[-1] - 1e-9))
    if count < 1:
        raise UsageError(f"count must be at least 1 block, got {count}")
    forced = _forced(scores, always)
    order, rank = _ranking(scores, forced)
    budget = forced.sum(-1, keepdim=True).clamp(min=count)
    return (rank < budget) & ((scores != -torch.inf) | forced)


@torch.no_grad()
def select_top_p(
    scores: Tensor,
    p: float,
    *,
    always: Tensor | None = None,
    min_blocks: int = 1,
    max_share: float = 1.0,
) -> Tensor:
    """Keep the best blocks until they hold the share ``p`` of the row's mass; the block that crosses it is kept.

    Args:
        scores: (B|1, H|1, Mq, Mk) non-negative masses (not necessarily summing to 1); ``-inf`` means forbidden. On a
            GPU nobody looks whether any is negative.
        p: share in (0, 1]. 1 keeps every block with positive mass.
        always: bool, broadcast: blocks kept in any case, taken before the ranking; their mass counts.
        min_blocks: floor per row.
        max_share: cap per row as a share of Mk; forced blocks may exceed it. Without a cap flat scores keep everything.

    Returns:
        bool like ``scores``.
    """
    if not 0 < p <= 1:
        raise UsageError(f"p must lie in (0, 1], got {p}")
    forced = _forced(scores, always)
    order, rank = _ranking(scores, forced)
    mass = scores.masked_fill(scores == -torch.inf, 0).double()
    # a look at a device would wait for it
    if mass.device.type == "cpu" and not torch.compiler.is_compiling() and bool((mass < 0).any()):
        raise UsageError("select_top_p needs masses >= 0 (for instance pooled_scores with normalise='softmax')")
    ranked = mass.gather(-1, order)
    running = ranked.cumsum(-1)
    before = torch.cat([torch.zeros_like(running[..., :1]), running[..., :-1]], -1)
    wanted = ((before < p * running[..., -1:]) & (ranked > 0)).sum(-1, keepdim=True)
    return _bounded(scores, forced, rank, wanted, min_blocks, max_share)


@torch.no_grad()
def select_threshold(
    scores: Tensor,
    threshold: float,
    *,
    always: Tensor | None = None,
    min_blocks: int = 1,
    max_share: float = 1.0,
) -> Tensor:
    """Keep the blocks whose score reaches ``threshold``; floor, cap and forced blocks as in :func:`select_top_p`."""
    forced = _forced(scores, always)
    _, rank = _ranking(scores, forced)
    wanted = ((scores >= threshold) | forced).sum(-1, keepdim=True)
    return _bounded(scores, forced, rank, wanted, min_blocks, max_share)


@torch.no_grad()
def select_counts(scores: Tensor, counts: Tensor, *, always: Tensor | None = None) -> Tensor:
    """Keep as many of the best blocks of every row as ``counts`` (.., Mq, 1) says, those of ``always`` first."""
    _, rank = _ranking(scores, _forced(scores, always))
    return rank < counts


def _forced(scores: Tensor, always: Tensor | None) -> Tensor:
    if scores.dim() != 4:
        raise UsageError(f"scores must be (B|1, H|1, Mq, Mk), got shape {tuple(scores.shape)}")
    if always is None:
        return torch.zeros_like(scores, dtype=torch.bool)
    if always.dtype != torch.bool:
        raise UsageError(f"always must be a bool mask, got {always.dtype}")
    return always.to(scores.device).expand(scores.shape)


def _ranking(scores: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the blocks of each row (forced, then by score, ties by index) and the place of every block in it."""
    # NaN scores sort as the largest, so a NaN row keeps a full, valid selection and the NaN shows in the output.
    by_score = scores.sort(dim=-1, descending=True, stable=True).indices
    by_force = forced.gather(-1, by_score).sort(dim=-1, descending=True, stable=True).indices
    order = by_score.gather(-1, by_force)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(-1, order, places)


def _bounded(scores: Tensor, forced: Tensor, rank: Tensor, wanted: Tensor, min_blocks: int, max_share: float) -> Tensor:
    if min_blocks < 0:
        raise UsageError(f"min_blocks must be >= 0, got {min_blocks}")
    if not 0 < max_share <= 1:
        raise UsageError(f"max_share must lie in (0, 1], got {max_share}")
    cap = max(1, min_blocks, floor(max_share * scores.shape[-1] + 1e-9))
    budget = torch.maximum(wanted.clamp(min=min_blocks, max=cap), forced.sum(-1, keepdim=True))
    return (rank < budget) & ((scores != -torch.inf) | forced)


def block_lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lists from a mask (B|1, H|1, Mq, Mk): counts (.., Mq) and ascending indices (.., Mq, K), int32, 0-padded."""
    count = mask.sum(-1, dtype=torch.int32)
    width = int(count.max()) if count.numel() else 0
    index = mask.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[..., :width].to(torch.int32)
    slots = torch.arange(width, device=mask.device, dtype=torch.int32)
    return count, torch.where(slots < count[..., None], index, torch.zeros((), dtype=torch.int32, device=mask.device))
