"""How many blocks are kept, and which: a budget over scores of any kind."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import torch

from genkit.kernels.scores.select import select_counts, select_top_k, select_top_p

if TYPE_CHECKING:
    from genkit.attention.block_select.method import BlockSelect


def blocks_kept(settings: BlockSelect, count: int) -> int:
    """Blocks per query block under top-k; under top-p the cap."""
    keep = settings.keep if settings.top_p is None else settings.most
    return max(1, min(count, keep if isinstance(keep, int) else ceil(keep * count - 1e-9)))


def with_bias(scores: torch.Tensor, bias: torch.Tensor, masses: bool) -> torch.Tensor:
    """Scores (B, H, M, M) of blocks whose pairs get a bias, (1, H|1, M, M) on average: logits are added to, masses
    multiplied with its exponential, rows summing to 1 again."""
    if not masses:
        return scores + bias
    weight = scores * (bias - bias.amax(-1, keepdim=True)).exp()
    return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


def select(scores: torch.Tensor, always: torch.Tensor, settings: BlockSelect, own: torch.Tensor | None) -> torch.Tensor:
    """The blocks that every row keeps.

    Args:
        scores: (B, H, M, M) float32, ``-inf`` forbids.
        always: bool, broadcast: kept in any case; they count towards the budget and may exceed it.
        settings: the budget.
        own: with ``ranking="shared"``: masses (B, H, M, M) that tell how many blocks a row needs; ``scores`` rank.

    Returns:
        bool (B, H, M, M); no row is empty.
    """
    count = scores.shape[-1]
    if settings.top_p is None:
        wanted = blocks_kept(settings, count)
        if settings.scope == "row":
            return select_top_k(scores, wanted, always=always)
        return _per_head(scores, always, wanted * count)
    masses = scores if own is None else own
    chosen = select_top_p(masses, settings.top_p, always=always, min_blocks=settings.least, max_share=settings.most)
    if own is None:
        return chosen
    return select_counts(scores, chosen.sum(-1, keepdim=True), always=always)


def _per_head(scores: torch.Tensor, always: torch.Tensor, wanted: int) -> torch.Tensor:
    """The best ``wanted`` entries of every head together: rows that need more take them from others."""
    flat = scores.flatten(2)[:, :, None]
    forced = always.expand(scores.shape).flatten(2)[:, :, None]
    return select_top_k(flat, wanted, always=forced).reshape(scores.shape)
