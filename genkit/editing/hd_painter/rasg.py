"""RASG: reweighting attention score guidance. A gradient towards the prompt takes the place of a step's noise.

The loss is how badly the prompt's cross-attention covers the mask. Scaled to the size of noise, its gradient fits into
a DDIM step where the step has room for noise anyway, so that samples stay where the model expects them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

#: Taken from the attention scores before they are compared with the mask; the published code's.
OFFSET = 1.0


def attention_score(logits: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """How well the prompt's tokens look at the mask: minus their binary cross-entropy, summed over tokens and rows.

    Args:
        logits: (..., N, tokens) scores of cross-attention before the softmax, mean over heads and layers.
        unknown: (N,) 1 inside the mask, 0 outside.
    """
    target = unknown.to(logits)[:, None].expand_as(logits)
    loss = functional.binary_cross_entropy_with_logits(logits - OFFSET, target, reduction="none")
    return -loss.mean(-2).sum()


def as_noise(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient (B, ...) scaled to a standard deviation of 1 in each row; its mean is kept. Zero where it vanishes."""
    spread = gradient.flatten(1).std(-1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(spread > 0, gradient / spread.clamp(min=torch.finfo(gradient.dtype).tiny), 0.0)


def mixed(drawn: torch.Tensor | None, eta: float, gradient: torch.Tensor | None, rasg: float) -> tuple[float, Any]:
    """The noise of a step, part drawn and part gradient, as a share of DDIM's deviation and something of size 1.

    Args:
        drawn: normal noise, with its share ``eta``; None without.
        gradient: of size 1, with its share ``rasg``; None without. It is a direction and not noise, but adds to the
            deviation likewise: together they are at most 1.
    """
    parts = [(share, value) for share, value in ((eta, drawn), (rasg, gradient)) if value is not None and share]
    whole = sum(share**2 for share, _ in parts) ** 0.5
    if not whole:
        return 0.0, None
    return min(whole, 1.0), sum(share / whole * value for share, value in parts)
