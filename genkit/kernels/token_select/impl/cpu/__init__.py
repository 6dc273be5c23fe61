"""Per-token selection on the CPU."""

from genkit.kernels.token_select.impl.cpu.backend import backward, forward, why_not

__all__ = ["backward", "forward", "why_not"]
