"""Strided shards of the sequence per head (S2-Attention): settings and plan in ``method``."""

from genkit.attention.shards.method import Shards

__all__ = ["Shards"]
