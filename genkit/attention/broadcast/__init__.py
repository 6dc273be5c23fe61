"""Attention that serves several steps: settings and calls in ``method``, what is kept between steps in ``turns``."""

from genkit.attention.broadcast.method import Broadcast

__all__ = ["Broadcast"]
