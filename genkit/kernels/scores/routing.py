"""Tokens sorted by content: k-means per head, so that a block of neighbours in the new order holds what is alike."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError


@torch.no_grad()
def kmeans_order(x: Tensor, clusters: int, iterations: int = 4) -> Tensor:
    """Order in which the tokens of every head stand cluster by cluster.

    Euclidean k-means that begins with tokens at even distances. Clusters are then put beside those that are like them,
    so that a block at the seam of two clusters is of one kind, too. The same tokens always give the same order.

    Args:
        x: (B, N, H, D) queries or keys.
        clusters: 1 to N.
        iterations: rounds of assignment and means. Cost of a round: N * clusters * D products twice per head.

    Returns:
        (B, H, N) int64: the token at every place.

    Source: Routing Transformer, arXiv 2003.05997; Sparse VideoGen2, arXiv 2505.18875.
    """
    count = x.shape[1]
    for name, value, most in (("clusters", clusters, count), ("iterations", iterations, 1000)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UsageError(f"{name} must be a whole number from 1 to {most}, got {value}")
    points = x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))
    first = torch.linspace(0, count - 1, clusters, device=x.device).round().long()
    centres = points[:, :, first]
    label = _nearest(points, centres)
    for _ in range(iterations):
        member = torch.nn.functional.one_hot(label, clusters).to(points.dtype)
        often = member.sum(2)[..., None]
        means = member.transpose(2, 3) @ points / often.clamp(min=1)
        centres = torch.where(often > 0, means, centres)
        label = _nearest(points, centres)
    place = _beside_each_other(centres).argsort(dim=-1, stable=True)
    return place.gather(-1, label).argsort(dim=-1, stable=True)


def _beside_each_other(centres: Tensor) -> Tensor:
    """Order (B, H, C) of centres: from the first one always on to the nearest that is left."""
    apart = torch.cdist(centres, centres)
    here = torch.zeros(*centres.shape[:2], 1, dtype=torch.int64, device=centres.device)
    order, left = [here], torch.ones_like(apart[:, :, 0], dtype=torch.bool)
    for _ in range(centres.shape[2] - 1):
        left = left.scatter(-1, here, False)
        row = apart.gather(2, here[..., None].expand(-1, -1, -1, apart.shape[3]))[:, :, 0]
        here = row.masked_fill(~left, torch.inf).argmin(-1, keepdim=True)
        order.append(here)
    return torch.cat(order, -1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Number (B, H, N) of the centre nearest to every point; of equally near ones the first."""
    return (centres.square().sum(-1)[:, :, None] - 2 * points @ centres.transpose(2, 3)).argmin(-1)


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """x (B, N, H, D) with the tokens of every head in an order (B, H, N); ``order.argsort(-1)`` is the way back."""
    return x.gather(1, order.transpose(1, 2)[..., None].expand(x.shape))
