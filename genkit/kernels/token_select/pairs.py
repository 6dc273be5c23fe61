"""Turning a (query token x key block) selection into lists: which queries visit each block, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """All chosen (query token, key block) pairs, sorted by batch, head, key block and query, and the way back.

    Attributes:
        query: (P,) int32, the query token of each pair.
        row: (P,) int64, the same counted through batch and heads: number in (B*H*N).
        block_start: (B*H*C + 1,) int64: pairs of (batch, head, block) number i are
            ``block_start[i]:block_start[i + 1]``.
        row_start: (B*H*N + 1,) int64 and
        row_pair: (P,) int64: the numbers of the pairs of row i, in ascending block order, are
            ``row_pair[row_start[i]:row_start[i + 1]]``.
    """

    query: Tensor
    row: Tensor
    block_start: Tensor
    row_start: Tensor
    row_pair: Tensor

    @classmethod
    def of(cls, selected: Tensor) -> Pairs:
        """From a bool selection (B, H, N, C). Costs one host synchronisation, and 4 bytes per entry of the selection
        while it runs."""
        n, c = selected.shape[2:]
        by_block = selected.transpose(2, 3).contiguous()
        place = by_block.flatten().nonzero().flatten()
        number = place // n  # of (batch, head, block)
        query = place - number * n
        row = number // c * n + query
        row_start = _starts(selected.sum(-1).flatten())
        # A pair's place among those of its row is the number of blocks the row has chosen up to here.
        rank = selected.cumsum(-1, dtype=torch.int32).flatten().index_select(0, row * c + number % c)
        row_pair = torch.empty_like(row)
        row_pair[row_start.index_select(0, row) + rank - 1] = torch.arange(len(row), device=row.device)
        return cls(query.to(torch.int32), row, _starts(by_block.sum(-1).flatten()), row_start, row_pair)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
