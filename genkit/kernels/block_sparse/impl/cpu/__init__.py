"""Block-sparse attention on the CPU."""

from genkit.kernels.block_sparse.impl.cpu.backend import backward, forward, why_not

__all__ = ["backward", "forward", "why_not"]
