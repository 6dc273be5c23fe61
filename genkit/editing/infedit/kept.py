"""Things that stay: where the words for them act in the input the result is the input; elsewhere they do not act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import Reweight, Rule, Where
from genkit.editing.infedit.sampler import TARGET
from genkit.editing.shared.blend import acting
from genkit.editing.shared.model import EditModel
from genkit.editing.shared.prompts import positions


@dataclass(frozen=True, eq=False)
class Kept:
    """Things of the input that stay, from the first step to the result.

    Blending alone leaves them free elsewhere: where noise hides the input, the target draws its things where it likes,
    and a second one of what stays comes beside the first. So words for it are blind outside of the mask.

    Args:
        mask: bool (1, 1, [T,] h, w), where they are.
        rules: of the target's attention.
        source: (1, ...) latents of the input.
    """

    mask: torch.Tensor
    rules: tuple[Rule, ...]
    source: torch.Tensor

    @classmethod
    def of(
        cls, model: EditModel, pipe: Any, source: torch.Tensor, prompts: tuple[str, str], words: tuple[str, ...],
        threshold: float, slots: int | None,
    ) -> Kept:  # fmt: skip
        """Look them up in the input.

        Args:
            model, pipe: see :class:`EditModel`.
            source: (1, ...) latents of the input.
            prompts: of source and target.
            words: that both have.
            threshold: of the map of :func:`genkit.editing.shared.blend.acting`, 0..1.
            slots: text tokens, where they can be chosen.

        Raises:
            UsageError: a word that a prompt does not have.
        """
        tokens = positions(pipe, prompts[1], words, slots)
        mask = acting(model, source, prompts[0], words, slots) > threshold
        outside = (~mask)[0, 0].float()
        blind = Reweight(tokens=tokens, weight=0.0, region=outside, into=TARGET, where=Where(conditional=True))
        return cls(mask, (blind,), source)

    def blended(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents of the target with the things as they are in the input."""
        return torch.where(self.mask, self.source, latents)
