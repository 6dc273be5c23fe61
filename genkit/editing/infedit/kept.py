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

#: Thresholds where self-attention follows the source, which holds outlines, so that only what is surely the thing need
#: be taken; and where it is free, and the mask alone holds the thing, its rim too.
_FOLLOWED, _FREE = 0.6, 0.3
#: Words for a thing are blind where they act less than this share of the threshold: its surroundings belong to neither.
_BLIND = 0.5


@dataclass(frozen=True, eq=False)
class Kept:
    """Things of the input that stay, from the first step to the result.

    Blending alone leaves them free elsewhere: where noise hides the input, the target draws its things where it likes,
    and a second one of what stays comes beside the first. So words for it are blind far from it, in the steps whose
    maps are not the source's anyway.

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
        threshold: float, slots: int | None, free: str | None,
    ) -> Kept:  # fmt: skip
        """Look them up in the input.

        Args:
            model, pipe: see :class:`EditModel`.
            source: (1, ...) latents of the input.
            prompts: of source and target.
            words: that both have.
            threshold: of the map of :func:`genkit.editing.shared.blend.acting`, 0..1.
            slots: text tokens, where they can be chosen.
            free: the steps whose maps are the target's own, as :class:`genkit.control.Where` takes them; None = none.

        Raises:
            UsageError: a word that a prompt does not have.
        """
        tokens = positions(pipe, prompts[1], words, slots)
        found = acting(model, source, prompts[0], words, slots)
        far = (found < _BLIND * threshold)[0, 0].float()
        rules: tuple[Rule, ...] = ()
        if free is not None and bool(far.any()):
            where = Where(conditional=True, steps=free)
            rules = (Reweight(tokens=tokens, weight=0.0, region=far, into=TARGET, where=where),)
        return cls(found > threshold, rules, source)

    @staticmethod
    def usual(keep: float) -> float:
        """The threshold where nobody says, by the share of the steps in which self-attention follows the source."""
        return _FOLLOWED if keep else _FREE

    def blended(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents of the target with the things as they are in the input."""
        return torch.where(self.mask, self.source, latents)
