"""Rows of a batch: what was made for few samples, for the rows of a call."""

from __future__ import annotations

import torch

from genkit.errors import UsageError


def spread(x: torch.Tensor, batch: int, what: str) -> torch.Tensor:
    """Rows of something made for b samples, for a batch of B: b = 1, or b rows repeated (halves of guidance).

    Raises:
        UsageError: b does not divide B.
    """
    rows = x.shape[0]
    if rows == 1:
        return x.expand(batch, *x.shape[1:])
    if batch % rows:
        raise UsageError(f"{what} of {rows} rows cannot serve a batch of {batch}: give 1 row or a divisor of the batch")
    return x if rows == batch else x.repeat(batch // rows, *[1] * (x.dim() - 1))
