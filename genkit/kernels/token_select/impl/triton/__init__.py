"""Per-token selection in Triton kernels, for GPUs."""

from genkit.kernels.token_select.impl.triton.backend import backward, forward, why_not

__all__ = ["backward", "forward", "why_not"]
