"""What the tests of the methods share: float64 attention over a mask, random tensors, a tiny module with one site."""

from __future__ import annotations

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.site import Site


def attention_over(q, k, v, mask, scale=None):
    """softmax(scale q k^T) v in float64 over the pairs where ``mask`` (N, N) or (B, 1, N, N) is True."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def tokens(layout, heads=2, key_heads=None, width=8, batch=2, seed=0, dtype=torch.float32):
    """Random q (B, N, H, D) and k, v (B, N, Hk, D)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, layout.length, count, width) for count in (heads, key_heads or heads, key_heads or heads)]
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


class Layer(torch.nn.Module):
    """One projection and one attention site run by a method, as a patched model would."""

    def __init__(self, method, layout, backend="auto"):
        super().__init__()
        torch.manual_seed(3)
        self.method, self.layout, self.cache = method, layout, PatchCache(backend)
        self.project = torch.nn.Linear(8, 24)

    def forward(self, x, key_mask=None):
        q, k, v = self.project(x).chunk(3, -1)
        role = "joint" if len(self.layout.segments) > 1 else "self"
        site = Site("layer", 0, 1, role, x.shape[2], self.layout, self.layout, key_mask=key_mask)
        return self.method.attend(q, k, v, site, self.cache)
