"""BroadWay: settings and gate in ``method``, the mathematics of one call in ``maps``."""

from genkit.attention.broadway.method import Broadway

__all__ = ["Broadway"]
