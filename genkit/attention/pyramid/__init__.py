"""Pyramid attention: settings and calls in ``method``, how coarsely a block is read in ``levels``, the Gilbert curve in
``gilbert``."""

from genkit.attention.pyramid.method import Pyramid

__all__ = ["Pyramid"]
