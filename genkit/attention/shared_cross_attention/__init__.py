"""Shared cross-attention: ``method``, a layer's weights in ``layer``, positions of its queries in ``positions``."""

from genkit.attention.shared_cross_attention.method import SharedCrossAttention

__all__ = ["SharedCrossAttention"]
