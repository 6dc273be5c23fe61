"""Block means by a Triton kernel: every token is read once and nothing but the means is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genkit.kernels.inputs import triton_refuses, unit_rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256


def why_not(x: Tensor) -> str | None:
    """None, or the reason this backend cannot pool x."""
    return triton_refuses(x, DTYPES, MAX_DIM)


def arguments(x: Tensor, block: int, valid: Tensor | None, out: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Arguments and options of the launch that fills ``out``; the same for running and for compiling ahead of time."""
    _, n, heads, dim = x.shape
    width = max(16, 1 << (dim - 1).bit_length())
    options = {"D": dim, "DP": width, "TILE": 64 if width <= 128 else 32, "num_warps": 4, "enable_fp_fusion": True}
    return (x, *x.stride()[:3], out, valid, n, block, out.shape[1], heads), options


def pool(x: Tensor, block: int, valid: Tensor | None) -> Tensor:
    """(B, N, H, D) to the means (B, M, H, D) float32. Reads x where it lies, unless its channels are not dense."""
    from genkit.kernels.scores.impl.triton.kernel import pool_kernel

    x = unit_rows(x)
    b, n, h, d = x.shape
    out = torch.empty(b, -(-n // block), h, d, dtype=torch.float32, device=x.device)
    valid = None if valid is None else valid.to(x.device, torch.int32).contiguous()
    given, options = arguments(x, block, valid, out)
    if out.numel():
        with torch.cuda.device_of(x):
            pool_kernel[(out.shape[1], b * h)](*given, **options)
    return out
