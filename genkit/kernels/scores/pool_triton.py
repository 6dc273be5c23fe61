"""Block means by a Triton kernel: every token is read once and nothing but the means is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256
MAX_PROGRAMS = 65535


def why_not(x: Tensor) -> str | None:
    """None, or the reason this backend cannot pool x."""
    try:
        import triton
    except ImportError:
        return "the triton package is not installed (pip install 'genkit[triton]')"
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype} is not one of {', '.join(str(d) for d in DTYPES)}"
    if x.shape[-1] > MAX_DIM:
        return f"head dim {x.shape[-1]} exceeds {MAX_DIM}"
    if x.shape[0] * x.shape[2] > MAX_PROGRAMS:
        return f"batch * heads = {x.shape[0] * x.shape[2]} exceeds the {MAX_PROGRAMS} programs a grid axis may have"
    if x.device.type == "cuda":
        return None
    if not triton.knobs.runtime.interpret:
        return f"the tensor is on {x.device}; it needs a CUDA or HIP device, or TRITON_INTERPRET=1 for tests"
    if x.dtype == torch.bfloat16:
        return "the Triton interpreter computes bfloat16 wrongly; use float16 or float32 there"
    return None


def arguments(x: Tensor, block: int, valid: Tensor | None, out: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Arguments and options of the launch that fills ``out``; the same for running and for compiling ahead of time."""
    _, n, heads, dim = x.shape
    width = max(16, 1 << (dim - 1).bit_length())
    options = {"D": dim, "DP": width, "TILE": 64 if width <= 128 else 32, "num_warps": 4, "enable_fp_fusion": True}
    return (x, *x.stride()[:3], out, valid, n, block, out.shape[1], heads), options


def pool(x: Tensor, block: int, valid: Tensor | None) -> Tensor:
    """(B, N, H, D) to the means (B, M, H, D) float32. Reads x where it lies, unless its channels are not dense."""
    from genkit.kernels.scores.pool_kernel import pool_kernel

    x = x if x.stride(-1) == 1 else x.contiguous()
    b, n, h, d = x.shape
    out = torch.empty(b, -(-n // block), h, d, dtype=torch.float32, device=x.device)
    valid = None if valid is None else valid.to(x.device, torch.int32).contiguous()
    given, options = arguments(x, block, valid, out)
    if out.numel():
        with torch.cuda.device_of(x):
            pool_kernel[(out.shape[1], b * h)](*given, **options)
    return out
