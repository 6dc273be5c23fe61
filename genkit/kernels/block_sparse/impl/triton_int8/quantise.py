"""Queries and keys as whole numbers of eight bits, each token of a head with a step of its own."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 127


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round every token of every head to a multiple of a step.

    Args:
        x: (B, N, H, D).

    Returns:
        int8 (B, N, H, D), contiguous, and the steps (B, H, N) float32: ``x`` is about their product, wrong by at most
        half a step, which is 1/254 of the token's largest channel. A token with NaN or infinity has a NaN step.
    """
    wide = x.float()
    step = wide.abs().amax(-1) / MOST
    step = torch.where(step.isfinite(), step, torch.nan)
    whole = (wide / step.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).nan_to_num(0).round()
    return whole.to(torch.int8).contiguous(), step.transpose(1, 2).contiguous()


def split_mean(k: Tensor) -> tuple[Tensor, Tensor]:
    """Keys without what all tokens of a head have in common, and that: (B, N, H, D) and (B, 1, H, D), both float32.

    It adds the same number to every score of a row, so it changes log-sum-exp alone, but often it is most of a key and
    would use up the eight bits (SageAttention, arXiv 2410.02367).
    """
    wide = k.float()
    mean = wide.nan_to_num(0, 0, 0).mean(1, keepdim=True)
    return wide - mean, mean
