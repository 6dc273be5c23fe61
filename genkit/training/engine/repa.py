"""REPA heads: teaching a hidden layer what the picture shows.

A linear read-out of an early block predicts, during training, what is known of the sample. In the spirit of
representation alignment (Yu et al., 2024), with exact ground truth in place of a pretrained encoder: words are bound
to places and motions after far fewer steps. The head is dropped afterwards.
"""

from __future__ import annotations

import torch
from torch import nn


class REPAHead(nn.Module):
    """Linear read-out of one block, kept up to date by a forward hook on that block.

    Args:
        block: the block whose output is read: (B, N, width) or (B, width, H, W), alone or in a tuple.
        width: channels of the block's output.
        features: numbers read per position.
        part: which member of a tuple is read.
    """

    def __init__(self, block: nn.Module, width: int, features: int, part: int = -1):
        super().__init__()
        self.part = part
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.read = nn.Linear(width, features)
        self._seen: torch.Tensor | None = None
        block.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs, output) -> None:
        seen = output[self.part] if isinstance(output, tuple) else output
        self._seen = seen.flatten(2).transpose(1, 2) if seen.ndim == 4 else seen

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """Mean squared error against features (B, ..., C), one set per token, of the last forward pass.

        Tokens behind those that have features, such as a picture's behind a clip's, count nothing.
        """
        told = features.flatten(1, -2)
        guess = self.read(self.norm(self._seen[:, : told.shape[1]].float()))
        self._seen = None
        return torch.nn.functional.mse_loss(guess, told.to(guess))
