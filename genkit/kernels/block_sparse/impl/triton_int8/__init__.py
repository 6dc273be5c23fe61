"""The Triton kernel with queries and keys in int8, for inference; imported when first run."""

from genkit.kernels.block_sparse.impl.triton_int8.backend import backward, forward, why_not

__all__ = ["PRIORITY", "backward", "forward", "why_not"]

PRIORITY = None  # only by name: it is approximate
