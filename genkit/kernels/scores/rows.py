"""Scores from a few whole rows of the attention map: mass by relative place of two blocks, or by key block alone."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.scores.blocks import split_blocks, token_validity
from genkit.kernels.scores.estimate import _match_heads, _sample, place_weights

_UNIT = 2.0**31  # masses as whole numbers of 2^-31: they add up to the same sum in any order


@torch.no_grad()
def row_mass(
    q: Tensor,
    k: Tensor,
    block_q: int,
    block_k: int,
    *,
    rows: int = 1,
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Mass of every block pair, exact for ``rows`` queries of each query block.

    Args:
        q, k: (B, Nq, H, D), (B, Nk, Hk, D).
        block_q, block_k: tokens per block.
        rows: queries drawn per block, the same places in every block. Cost is rows / (2 block_q) of dense attention.
        seed: of the draw.
        scale: softmax scale, default 1/sqrt(D).

    Returns:
        (B, H, Mq, Mk) float32, rows sum to 1. Memory: rows * Mq * Nk numbers a head for a moment, on a CPU some MB.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    some, real = _sample(q, block_q, rows, torch.Generator().manual_seed(seed))
    keys = split_blocks(_match_heads(k, q.shape[2]).float(), block_k).transpose(1, 2)
    there = token_validity(k.shape[1], block_k, None, k.device).T
    weights = place_weights(some * factor, real, keys, there, "mass", k.shape[1] % block_k > 0)
    return weights.sum(2) / real.sum(0).clamp(min=1)[:, None]


def relative_places(places: Tensor) -> Tensor:
    """(M, M) int64: pairs of blocks that lie equally far apart have the same number, from 0 without gaps.

    Args:
        places: (M, axes) int64, where every block lies, in blocks.
    """
    number = torch.zeros(len(places), len(places), dtype=torch.int64, device=places.device)
    # sizes come from the number of blocks, so that nothing waits for the device
    side = 2 * len(places) - 1
    for axis in range(places.shape[1]):
        number = number * side + (places[:, None, axis] - places[None, :, axis]) + len(places) - 1
    ordered, order = number.reshape(-1).sort(stable=True)
    first = torch.cat([torch.zeros_like(ordered[:1]), (ordered.diff() != 0).long()])
    return torch.empty_like(ordered).scatter_(0, order, first.cumsum(0)).reshape(number.shape)


@torch.no_grad()
def offset_scores(mass: Tensor, apart: Tensor) -> Tensor:
    """Every block pair gets the mean mass of all pairs that lie equally far apart: the same for all places of the grid.

    Args:
        mass: (B, H, M, M), for instance from :func:`row_mass`.
        apart: (M, M) int64, from :func:`relative_places`; made once per layout.

    Returns:
        (B, H, M, M) float32.
    """
    if mass.shape[-2:] != apart.shape:
        raise UsageError(f"offset_scores needs a square map of {len(apart)} blocks, got {tuple(mass.shape)}")
    number = apart.reshape(-1)
    whole = (mass.flatten(2).double() * _UNIT).round().long()
    sums = torch.zeros_like(whole).index_add_(2, number, whole)
    often = torch.zeros_like(number).index_add_(0, number, torch.ones_like(number))
    mean = sums.double() / _UNIT / often.clamp(min=1)
    return mean[..., number].reshape(mass.shape).float()


@torch.no_grad()
def vertical_scores(mass: Tensor) -> Tensor:
    """Mass per key block, the same for all query blocks: which keys everything looks at.

    Args:
        mass: (B, H, Mq, Mk), for instance from :func:`row_mass`.

    Returns:
        (B, H, Mq, Mk) float32.
    """
    return mass.mean(2, keepdim=True).expand_as(mass)
