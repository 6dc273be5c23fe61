"""Radial attention: settings and plan in ``method``, the block mask in ``mask``."""

from genkit.attention.radial.method import Radial

__all__ = ["Radial"]
