"""Lists by Triton kernels."""

from genkit.kernels.block_lists.impl.triton.backend import invert, list_mask, select, why_not

__all__ = ["PRIORITY", "invert", "list_mask", "select", "why_not"]

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery
