"""Decisions for layers that are drawn while they are learned: ones and zeros with the gradient of a soft decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

#: First logit of full attention over sparse: almost surely full.
OPEN = 4.5


@dataclass
class Draws:
    """What decisions of layers are drawn with, set before every training step.

    Args:
        temperature: of the soft decision, whose gradient is taken.
        noise: number or name of a layer -> (B,) differences of two Gumbel draws, one decision per layer and sample;
            empty: the larger logit decides.
        decided: layer -> (B,) the decisions of the latest call, with their gradient.
    """

    temperature: float = 1.0
    noise: dict[int | str, torch.Tensor] = field(default_factory=dict)
    decided: dict[int | str, torch.Tensor] = field(default_factory=dict)

    def draw(self, layers: Iterable[int | str], count: int, generator: torch.Generator) -> None:
        """Fresh noise; a generator decides it. The same for the forward pass and its repetition under checkpointing."""
        self.noise = {layer: torch.rand(count, generator=generator).clamp(1e-6, 1 - 1e-6).logit() for layer in layers}

    def decide(self, logit: torch.Tensor, layer: int | str) -> torch.Tensor:
        """(B,) ones and zeros: whether the logit (B,) with its layer's noise is above 0, with the gradient of the
        sigmoid. Of two logits give the difference: this is then the straight-through Gumbel softmax of both."""
        noise = self.noise.get(layer)
        level = logit if noise is None else logit + noise.to(logit)
        soft = (level / self.temperature).sigmoid()
        self.decided[layer] = (level > 0).to(soft) + (soft - soft.detach())
        return self.decided[layer]
