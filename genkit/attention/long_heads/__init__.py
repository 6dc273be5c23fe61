"""LongHeads for video: every head chooses its own frames."""

from genkit.attention.long_heads.method import LongHeads

__all__ = ["LongHeads"]
