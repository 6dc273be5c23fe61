"""Block means in plain torch: runs everywhere, and is what the Triton form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.kernels.scores.blocks import split_blocks, token_validity

PRIORITY = 90  # in the search of "auto", see genkit.kernels.discovery


def why_not(x: Tensor) -> str | None:
    """Plain torch runs everywhere."""
    return None


def pool(x: Tensor, block: int, valid: Tensor | None) -> Tensor:
    """(B, N, H, D) to the means (B, M, H, D) float32, through two float32 copies of x."""
    real = token_validity(x.shape[1], block, valid, x.device)
    tiles = split_blocks(x, block).float()
    tiles = torch.where(real[None, :, :, None, None], tiles, torch.zeros((), device=x.device))
    return tiles.sum(2) / real.sum(1).clamp(min=1)[None, :, None, None]
