"""Turning a (query token x key block) selection into lists: which queries visit each block, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """All chosen (query token, key block) pairs, sorted by batch, head, key block and query.

    Attributes:
        query: (P,) int32, the query token of each pair.
        block_start: (B*H*C + 1,) int64: pairs of (batch, head, block) number i are
            ``block_start[i]:block_start[i + 1]``.
    """

    query: Tensor
    block_start: Tensor

    @classmethod
    def of(cls, selected: Tensor) -> Pairs:
        """From a bool selection (B, H, N, C). Costs one host synchronisation."""
        by_block = selected.transpose(2, 3).contiguous()
        query = (by_block.flatten().nonzero().flatten() % selected.shape[2]).to(torch.int32)
        return cls(query, _starts(by_block.sum(-1).flatten()))


@dataclass(frozen=True)
class Rows:
    """The way back: ``row_start`` (B*H*N + 1,) int64 and ``row_pair`` (P,) int64, the numbers of the pairs of each
    query row in ascending block order."""

    row_start: Tensor
    row_pair: Tensor

    @classmethod
    def of(cls, selected: Tensor) -> Rows:
        """From a bool selection (B, H, N, C). Costs 8 bytes per entry of the selection while it runs."""
        by_block = selected.transpose(2, 3).contiguous()
        place = (by_block.flatten().cumsum(0) - 1).view(by_block.shape).transpose(2, 3)
        return cls(_starts(selected.sum(-1).flatten()), place[selected])


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
