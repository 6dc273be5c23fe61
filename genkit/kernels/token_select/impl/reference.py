"""The specification: masked softmax attention over the chosen blocks, plain torch with autograd, O(N^2) memory."""

from __future__ import annotations

import torch
from torch import Tensor

PRIORITY = 90  # in the search of "auto", see genkit.kernels.discovery


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reference runs everywhere."""
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, starts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Shapes as in the operator's api; statistics in float32 (float64 for float64 input); autograd works."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[2] // k.shape[2]
    keys, values = (x.to(wide).repeat_interleave(group, 2) for x in (k, v))
    sizes = torch.tensor(starts, device=q.device).diff()
    seen = selected.repeat_interleave(sizes, dim=3, output_size=k.shape[1])
    scores = torch.einsum("bnhd,bmhd->bhnm", q.to(wide), keys) * scale
    none = ~seen.any(-1)
    # A row without keys: give it finite scores, then replace its results, so that no NaN reaches the gradients.
    hidden = ~seen & ~none[..., None]
    scores = scores.masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(-1).masked_fill(none, -torch.inf)
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), values)
    return out.masked_fill(none.transpose(1, 2)[..., None], 0).to(q.dtype), lse
