"""How a sequence falls into blocks: which slots hold real tokens, and the blocks themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError


def check_valid(blocks: int, valid: Tensor | None) -> None:
    """Raise unless ``valid`` is None or holds one count per block."""
    if valid is not None and valid.shape != (blocks,):
        raise UsageError(f"valid must hold one count per block: {blocks} blocks, got shape {tuple(valid.shape)}")


def token_validity(n: int, block: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """Bool (M, block): which slots hold a real token.

    Args:
        n: tokens in the sequence.
        block: tokens per block; M = ceil(n / block).
        valid: optional (M,) count of real tokens at the front of each block (padded border tiles). Default: all tokens.
    """
    if block < 1:
        raise UsageError(f"block must be at least 1 token, got {block}")
    blocks = -(-n // block)
    slots = torch.arange(block, device=device)
    ends = (n - torch.arange(blocks, device=device) * block).clamp(max=block)
    check_valid(blocks, valid)
    if valid is not None:
        ends = torch.minimum(ends, valid.to(device))
    return slots < ends[:, None]


def split_blocks(x: Tensor, block: int) -> Tensor:
    """(B, N, H, D) to (B, M, block, H, D), the tail padded with zeros."""
    b, n, h, d = x.shape
    blocks = -(-n // block)
    if blocks * block != n:
        x = torch.cat([x, x.new_zeros(b, blocks * block - n, h, d)], 1)
    return x.reshape(b, blocks, block, h, d)
