"""Block means: the step of block scoring that is worth a kernel of its own (docs/kernels.md has the count of bytes)."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels import discovery
from genkit.kernels.scores import impl
from genkit.kernels.scores.blocks import check_valid

_BACKENDS = discovery.Backends(impl, "pool_blocks")


def pool_backends() -> tuple[str, ...]:
    """Names of the backends of :func:`pool_blocks`, in the order ``auto`` tries them."""
    return _BACKENDS.names()


def pool_why_not(backend: str, x: Tensor) -> str | None:
    """None when ``backend`` can pool x (B, N, H, D), otherwise the reason why not."""
    return _BACKENDS.why_not(backend, x)


@torch.no_grad()
def pool_blocks(x: Tensor, block: int, valid: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Mean of the real tokens of every block; no gradient.

    Args:
        x: (B, N, H, D), any strides. block: tokens per block, M = ceil(N / block); the last block may be short.
        valid: optional (M,) counts of real tokens at the front of each block. Others are not read, whatever they hold.
        backend: ``"auto"`` or one of :func:`pool_backends`, which then runs or raises. ``triton`` reads x once;
            ``torch`` also writes and reads float32 copies of it.

    Returns:
        (B, M, H, D) float32; 0 for a block without tokens.

    Raises:
        UsageError: wrong shapes. UnsupportedError: the backend asked for cannot run; the message says why.
    """
    if x.dim() != 4 or block < 1:
        raise UsageError(f"pool_blocks needs x (B, N, H, D) and block >= 1, got {tuple(x.shape)} and {block}")
    check_valid(-(-x.shape[1] // block), valid)
    return torch.ops.genkit.pool_blocks(x, block, valid, backend)


@torch.library.custom_op("genkit::pool_blocks", mutates_args=())
def _pool(x: Tensor, block: int, valid: Tensor | None, backend: str) -> Tensor:
    return _BACKENDS[_BACKENDS.choose(backend, x)].pool(x, block, valid)


@_pool.register_fake
def _(x, block, valid, backend):
    b, n, h, d = x.shape
    return x.new_empty((b, -(-n // block), h, d), dtype=torch.float32)
