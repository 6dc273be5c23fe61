"""Block-sparse attention on the CPU."""

from genkit.kernels.block_sparse.impl.cpu.backend import backward, forward, why_not

__all__ = ["PRIORITY", "backward", "forward", "why_not"]

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery
