"""CLEAR: a disc around every token of a picture, and a pooled view of all the rest. Settings in ``method``, the disc
with pooled keys in ``pooled``, weights of a layer in ``weights``, the published files in ``published``."""

from genkit.attention.clear.method import Clear

__all__ = ["Clear"]
