"""Training with few text slots a model that will be run with many.

Diffusers' Wan pipeline pads the text with zero vectors to ``max_sequence_length`` and masks nothing, so the padding
takes part in the softmax of cross-attention. All padding keys are equal, hence ``m`` of them weigh as much as one with
``ln m`` added to its logit: training can run with a handful of slots and be exact for any padded length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def padding_bias(lengths: torch.Tensor, slots: int, full: int) -> torch.Tensor:
    """Additive logits that make ``slots`` text slots stand for ``full`` ones.

    Args:
        lengths: (B,) real tokens per row, each smaller than ``slots``.
        slots: text slots used in training.
        full: text slots the pipeline will use, at least ``slots``.

    Returns:
        (B, 1, 1, slots) float32: zero on real tokens, ``ln((full - n) / (slots - n))`` on padding.
    """
    column = torch.arange(slots, device=lengths.device)[None]
    share = torch.log((full - lengths).float() / (slots - lengths).float())[:, None]
    return torch.where(column >= lengths[:, None], share, torch.zeros_like(share))[:, None, None]


class PaddedCrossAttention:
    """Attention processor of Wan's text cross-attention that adds ``bias`` to the logits.

    One instance is shared by all layers; the training step sets ``bias`` before each forward pass.
    """

    def __init__(self):
        self.bias: torch.Tensor | None = None

    def __call__(
        self, attn: nn.Module, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ):
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))
