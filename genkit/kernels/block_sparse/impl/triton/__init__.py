"""Block-sparse attention in Triton kernels, for GPUs."""

from genkit.kernels.block_sparse.impl.triton.backend import backward, forward, why_not

__all__ = ["PRIORITY", "backward", "forward", "why_not"]

PRIORITY = 20  # in the search of "auto", see genkit.kernels.discovery
