"""Mixture of block: settings and calls in ``method``, the choice of blocks in ``select``."""

from genkit.attention.mixture_of_block.method import MixtureOfBlock, Partition

__all__ = ["MixtureOfBlock", "Partition"]
