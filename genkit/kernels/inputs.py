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


def matrix_unit(device: torch.device) -> str:
    """How warps multiply on a device, see :func:`matrix_unit_of`; ``"warps"`` on a CPU."""
    if device.type != "cuda":
        return "warps"
    if torch.version.hip:
        return "wavefronts"
    major, minor = torch.cuda.get_device_capability(device)
    return matrix_unit_of(f"sm_{major}{minor}")


def matrix_unit_of(target: str) -> str:
    """How warps multiply on a target such as ``"sm_90"`` or ``"gfx942"``, which says how large tiles must be so that
    none multiplies what another does.

    ``"warps"``: each 16 rows; ``"fours"``: four together 64 rows, as on Hopper; ``"memory"``: operands lie in a
    memory of the unit's own, as on data centres' Blackwell; ``"wavefronts"``: each 32 rows, as on CDNA.
    """
    if target.startswith("gfx"):
        return "wavefronts"
    return {9: "fours", 10: "memory", 11: "memory"}.get(int(target.removeprefix("sm_")[:-1]), "warps")


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
