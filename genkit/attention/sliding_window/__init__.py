"""Sliding windows of the training size."""

from genkit.attention.sliding_window.method import BOTH, OFF, REUSE, DualPath, SlidingWindow

__all__ = ["BOTH", "OFF", "REUSE", "DualPath", "SlidingWindow"]
