"""Block masks to index lists and back."""

from __future__ import annotations

import torch
from torch import Tensor


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of the True columns of every row.

    Args:
        mask: (..., M, K) bool.

    Returns:
        count (..., M) int32 and index (..., M, W) int32, ascending, 0 beyond the count; W is the largest count, at
        least 1 (K inside a compiled graph, where it must not depend on values).
    """
    count = mask.sum(-1, dtype=torch.int32)
    if torch.compiler.is_dynamo_compiling():
        order = torch.sort((~mask).to(torch.int8), dim=-1, stable=True).indices
        used = torch.arange(mask.shape[-1], device=mask.device) < count[..., None]
        return count, torch.where(used, order, 0).to(torch.int32)
    width = max(1, int(count.max())) if count.numel() else 1
    index = torch.zeros(*mask.shape[:-1], width, dtype=torch.int32, device=mask.device)
    rank = mask.cumsum(-1, dtype=torch.int32) - 1
    where = mask.nonzero(as_tuple=True)
    index[(*where[:-1], rank[where].long())] = where[-1].to(torch.int32)
    return count, index


def to_mask(count: Tensor, index: Tensor, columns: int) -> Tensor:
    """(..., M, columns) bool with True at the first ``count`` entries of ``index``."""
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    # unused entries go to an extra column, dropped below
    target = torch.where(used, index, columns).long()
    mask = torch.zeros(*index.shape[:-1], columns + 1, dtype=torch.bool, device=index.device)
    return mask.scatter_(-1, target, True)[..., :columns]
