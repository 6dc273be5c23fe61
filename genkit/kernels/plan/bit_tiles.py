"""Masks without a closed form: what a partial block lets through, stored as a bit per pair of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

WORD = 32  # key slots whose bits share an int32


@dataclass(frozen=True, eq=False)
class BitTiles:
    """The visible pairs of a plan's partial blocks. Equal tiles are stored once.

    Args:
        words: (T, block_q, ceil(block_k / 32)) int32; bit ``c % 32`` of word ``c // 32`` says whether a query slot sees
            key slot c. Bits of slots without a token are 0.
        index: int32 like the plan's ``partial_index``: the tile of each entry, 0 beyond the count.
    """

    words: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> BitTiles:
        """The same tiles on ``device``."""
        return replace(self, words=self.words.to(device), index=self.index.to(device))


def pack(seen: Tensor) -> Tensor:
    """(..., K) bool to (..., ceil(K / 32)) int32."""
    padded = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    places = torch.arange(WORD, device=seen.device)
    total = (padded.long() << places).sum(-1)
    # the highest bit is the sign
    return torch.where(total >= 1 << (WORD - 1), total - (1 << WORD), total).to(torch.int32)


def unpack(words: Tensor, count: int) -> Tensor:
    """(..., W) int32 to (..., count) bool, the inverse of :func:`pack`."""
    places = torch.arange(WORD, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> places) & 1).bool().flatten(-2)[..., :count]


def distinct(words: Tensor) -> tuple[Tensor, Tensor]:
    """Every tile of ``words`` (n, block_q, W) once, and the number (n,) of each."""
    if not len(words):
        return words, words.new_zeros(0, dtype=torch.int64)
    found, number = words.flatten(1).unique(dim=0, return_inverse=True)
    return found.view(-1, *words.shape[1:]), number
