"""Neighborhood attention."""

from genkit.attention.neighborhood.method import Neighborhood

__all__ = ["Neighborhood"]
