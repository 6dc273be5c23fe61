"""A loss that a method adds to whatever is trained through it."""

from __future__ import annotations

from typing import Any

import torch


class AddLoss(torch.autograd.Function):
    """Passes ``x`` on and adds a loss to whatever is trained: its gradient is 1, wherever ``x`` goes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """``x``."""
        ctx.like = loss.detach()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """The gradient of ``x``, and 1."""
        return grad, torch.ones_like(ctx.like)
