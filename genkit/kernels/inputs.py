"""What several operators ask of their inputs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

MAX_PROGRAMS = 65535  # along the second axis of a grid


def unit_rows(x: Tensor) -> Tensor:
    """``x`` with neighbouring elements along the last axis: torch's flash kernel for CPUs, called without its front
    door, takes that for granted and computes nonsense otherwise, for instance on the broadcast gradient of a sum."""
    return x if x.stride(-1) == 1 else x.contiguous()


def warps_work_in_fours(device: torch.device) -> bool:
    """Whether four warps multiply together, 64 rows at a time, as on Hopper: more warps than rows / 16 would multiply
    the same rows again."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device)[0] == 9


def triton_refuses(x: Tensor, dtypes: Collection[torch.dtype], max_dim: int) -> str | None:
    """Why no Triton kernel with a program per (batch, head) can run (B, N, H, D) inputs like ``x``, or None."""
    try:
        import triton
    except ImportError:
        return "the triton package is not installed (pip install triton)"
    if x.dtype not in dtypes:
        return f"dtype {x.dtype} is not one of {', '.join(str(d) for d in dtypes)}"
    if x.shape[-1] > max_dim:
        return f"head dim {x.shape[-1]} exceeds {max_dim}"
    if x.shape[0] * x.shape[2] > MAX_PROGRAMS:
        return f"batch * heads = {x.shape[0] * x.shape[2]} exceeds the {MAX_PROGRAMS} programs a grid axis may have"
    if x.device.type != "cuda":
        if not triton.knobs.runtime.interpret:
            return f"the inputs are on {x.device}; it needs a CUDA or HIP device, or TRITON_INTERPRET=1 for tests"
        if x.dtype == torch.bfloat16:
            return "the Triton interpreter computes bfloat16 wrongly; use float16 or float32 there"
    return None
