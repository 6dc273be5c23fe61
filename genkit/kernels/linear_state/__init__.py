"""Linear attention with a running key-value state: one operator for many linear-attention methods."""

from genkit.kernels.linear_state.api import backends, linear_state, why_not
from genkit.kernels.linear_state.state import LinearState

__all__ = ["LinearState", "backends", "linear_state", "why_not"]
