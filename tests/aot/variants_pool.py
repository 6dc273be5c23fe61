"""The launch of block means that is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genkit.kernels.scores.impl.triton.backend import arguments
from genkit.kernels.scores.impl.triton.kernel import pool_kernel

LENGTH, HEADS, BLOCK = 1024, 4, 128


def pool(dim: int, dtype: torch.dtype, counted: bool) -> Callable[[], object]:
    """A function that compiles the kernel as its launch would; ``counted`` with a count of tokens per block."""
    x = torch.zeros(1, LENGTH, HEADS, dim, dtype=dtype)
    out = torch.zeros(1, LENGTH // BLOCK, HEADS, dim)
    valid = torch.zeros(LENGTH // BLOCK, dtype=torch.int32) if counted else None
    given, options = arguments(x, BLOCK, valid, out)
    return lambda: pool_kernel.warmup(*given, grid=(1,), **options)
