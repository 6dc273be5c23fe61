"""Shifted groups of frames: settings and plan in ``method``, which frames see each other in ``groups``."""

from genkit.attention.shifted_groups.method import ShiftedGroups

__all__ = ["ShiftedGroups"]
