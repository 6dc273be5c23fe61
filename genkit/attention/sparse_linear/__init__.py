"""Sparse attention with a linear branch: settings and calls in ``method``, the sparse part by name in ``sparse_part``,
the projection fitted without training in ``fit``."""

from genkit.attention.sparse_linear.fit import ProjectionFit
from genkit.attention.sparse_linear.method import SparseLinear

__all__ = ["ProjectionFit", "SparseLinear"]
