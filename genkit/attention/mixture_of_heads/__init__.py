"""Heads as experts: a router per token chooses which ones run (MoH): settings in ``method``, routers in ``router``."""

from genkit.attention.mixture_of_heads.method import MixtureOfHeads

__all__ = ["MixtureOfHeads"]
