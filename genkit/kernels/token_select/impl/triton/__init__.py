"""Per-token selection in Triton kernels, for GPUs."""

from genkit.kernels.token_select.impl.triton.backend import backward, forward, why_not

__all__ = ["PRIORITY", "backward", "forward", "why_not"]

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery
