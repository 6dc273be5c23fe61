"""Per-token selection on the CPU."""

from genkit.kernels.token_select.impl.cpu.backend import backward, forward, why_not

__all__ = ["PRIORITY", "backward", "forward", "why_not"]

PRIORITY = 20  # in the search of "auto", see genkit.kernels.discovery
