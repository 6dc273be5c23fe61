"""Attention where every query token chooses its own key blocks (mixture of block), exact on the chosen keys."""

from genkit.kernels.token_select.api import backends, token_select_attention, why_not

__all__ = ["backends", "token_select_attention", "why_not"]
