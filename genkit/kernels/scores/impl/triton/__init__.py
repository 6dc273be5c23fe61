"""Block means by a Triton kernel."""

from genkit.kernels.scores.impl.triton.backend import pool, why_not

__all__ = ["pool", "why_not"]
