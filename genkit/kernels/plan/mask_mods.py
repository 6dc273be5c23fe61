"""Reading a mask function block by block, as far as memory allows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.plan.bit_tiles import pack
from genkit.kernels.plan.sizes import Sizes

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_PAIRS = 1 << 20  # token pairs asked of a mask function together


@dataclass(frozen=True)
class Seen:
    """What a mask function shows inside n blocks.

    Args:
        where: (batch, head, query block, key block) of each, (n,) int64, ascending.
        words: (n, block_q, W) int32, the visible pairs as :mod:`bit_tiles` packs them.
        some, every: (n,) bool: some pair is visible; every key slot holds a token that all queries see.
        hides: (n,) bool: some pair of tokens is hidden, though the block is not all hidden.
    """

    where: tuple[Tensor, Tensor, Tensor, Tensor]
    words: Tensor
    some: Tensor
    every: Tensor
    hides: Tensor

    def of(self, which: Tensor) -> tuple[Tensor, ...]:
        """Places of some of the blocks."""
        return tuple(part[which] for part in self.where)


def read_blocks(sizes: Sizes, mask_mod: MaskMod, blocks: Tensor) -> Seen:
    """Ask a mask function about every pair of tokens of the blocks (B, H, Mq, Mk) that are True."""
    where = blocks.nonzero(as_tuple=True)
    queries = sizes.query_slots().view(-1, sizes.block_q)
    keys = sizes.key_slots().view(-1, sizes.block_k)
    step = max(1, _PAIRS // (sizes.block_q * sizes.block_k))
    words, flags = [], []
    for place in zip(*(part.split(step) for part in where), strict=True):
        b, h, i, j = place
        if not len(b):  # a split of nothing is one empty piece, and vmap takes none
            continue
        shown, real = ask(mask_mod, b, h, queries[i], keys[j])
        seen = shown & real
        hides = (seen != real).flatten(1).any(1)
        every = ~hides & (sizes.k_valid == sizes.block_k)[j]
        words.append(pack(seen))
        flags.append(torch.stack([seen.flatten(1).any(1), every, hides]))
    if not words:
        none = torch.zeros(3, 0, dtype=torch.bool, device=sizes.device)
        empty = pack(torch.zeros(0, sizes.block_q, sizes.block_k, dtype=torch.bool, device=sizes.device))
        return Seen(where, empty, *none)
    some, every, hides = torch.cat(flags, 1)
    return Seen(where, torch.cat(words), some, every & some, hides & some)


def ask(mask_mod: MaskMod, b: Tensor, h: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(n, block_q, block_k) bool twice: what a mask function shows of n blocks, and where both tokens exist.

    Args:
        b, h: (n,). queries: (n, block_q), keys: (n, block_k) tokens in original order, -1 for padding.
    """
    real = (queries >= 0)[:, :, None] & (keys >= 0)[:, None]
    flat = [
        x.expand(real.shape).reshape(-1)
        for x in (b[:, None, None], h[:, None, None], queries.clamp(min=0)[:, :, None], keys.clamp(min=0)[:, None])
    ]
    return torch.vmap(mask_mod)(*flat).view(real.shape), real
