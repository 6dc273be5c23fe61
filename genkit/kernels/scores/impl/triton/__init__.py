"""Block means by a Triton kernel."""

from genkit.kernels.scores.impl.triton.backend import pool, why_not

__all__ = ["PRIORITY", "pool", "why_not"]

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery
