"""Dense attention plus a bias: settings and plan in ``method``, how far the bias reaches in ``reach``."""

from genkit.attention.biased.method import Biased

__all__ = ["Biased"]
