"""Linear cost: a chain of steps over pieces of the sequence, each run again in the backward pass. Plain torch.

``steps`` says which steps make up a call, ``chain`` runs them and their backward pass, ``excluded`` is the form that
leaves out the blocks of a plan.
"""

from __future__ import annotations

from genkit.kernels.linear_state.impl.chunked.chain import attention
from genkit.kernels.linear_state.impl.chunked.excluded import excluding

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery

__all__ = ["PRIORITY", "attention", "excluding"]
