"""Block masks to index lists and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Lists are as wide as a multiple of this: compiled kernels are told by whether a width is one, a multiple of 16 or
#: neither, so that with any width at all a run would compile the same kernel several times.
WIDTH_STEP = 16


@dataclass(frozen=True)
class InverseLists:
    """For every key block, the query blocks that visit it (what dK and dV need).

    ``full_count`` (B|1, H|1, Mk) int32 and ``full_index`` (B|1, H|1, Mk, W) int32, ascending, 0 beyond the count;
    ``partial_count`` and ``partial_index`` alike. ``partial_tile`` (like ``partial_index``) is the bit tile of each
    partial entry, None in a plan without bit tiles.
    """

    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    partial_tile: Tensor | None = None


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of the True columns of every row.

    Args:
        mask: (..., M, K) bool.

    Returns:
        count (..., M) int32 and index (..., M, W) int32, ascending, 0 beyond the count; W is the largest count rounded
        up to a multiple of ``WIDTH_STEP`` (inside a compiled graph K is, since it must not depend on values).
    """
    count = mask.sum(-1, dtype=torch.int32)
    if torch.compiler.is_dynamo_compiling():
        ascending = torch.sort((~mask).to(torch.int8), dim=-1, stable=True).indices
        used = torch.arange(mask.shape[-1], device=mask.device) < count[..., None]
        index = torch.where(used, ascending, 0).to(torch.int32)
        return count, torch.nn.functional.pad(index, (0, rounded(index.shape[-1]) - index.shape[-1]))
    return count, aligned(mask, mask.nonzero(as_tuple=True)[-1])


def rounded(width: int) -> int:
    """The width of a list that holds ``width`` entries."""
    return max(1, -(-width // WIDTH_STEP)) * WIDTH_STEP


def aligned(mask: Tensor, values: Tensor) -> Tensor:
    """Values of the True columns of every row, moved to the left: the table beside the lists of :func:`from_mask`.

    Args:
        mask: (..., M, K) bool. values: one for every True, in the order of ``mask.nonzero()``.

    Returns:
        (..., M, W) int32, 0 beyond the count.
    """
    count = mask.sum(-1)
    width = rounded(int(count.max()) if count.numel() else 0)
    table = torch.zeros(*mask.shape[:-1], width, dtype=torch.int32, device=mask.device)
    rank = mask.cumsum(-1, dtype=torch.int32) - 1
    where = mask.nonzero(as_tuple=True)
    table[(*where[:-1], rank[where].long())] = values.to(torch.int32)
    return table


def to_mask(count: Tensor, index: Tensor, columns: int) -> Tensor:
    """(..., M, columns) bool with True at the first ``count`` entries of ``index``."""
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    # unused entries go to an extra column, dropped below
    target = torch.where(used, index, columns).long()
    mask = torch.zeros(*index.shape[:-1], columns + 1, dtype=torch.bool, device=index.device)
    return mask.scatter_(-1, target, True)[..., :columns]
