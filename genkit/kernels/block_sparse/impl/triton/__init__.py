"""Block-sparse attention in Triton kernels, for GPUs."""

from genkit.kernels.block_sparse.impl.triton.backend import backward, forward, why_not

__all__ = ["backward", "forward", "why_not"]
