"""Anchor windows: settings and plans in ``method``, which frames see which in ``frames``."""

from genkit.attention.anchor_window.method import AnchorWindow

__all__ = ["AnchorWindow"]
