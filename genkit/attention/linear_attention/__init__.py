"""Linear attention in the place of softmax: settings and calls in ``method``."""

from genkit.attention.linear_attention.method import LinearAttention

__all__ = ["LinearAttention"]
