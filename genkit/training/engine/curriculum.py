"""Sizes over the budget: canvases that grow, and how many samples of one size are a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Size(Protocol):
    """A canvas (and a length) that knows how many latent tokens it has."""

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """What is trained on from a share of the budget on.

    Args:
        start: share of the budget at which the stage begins.
        mix: sizes and their probabilities.
    """

    start: float
    mix: tuple[tuple[Size, float], ...]


def draw_size(stages: tuple[Stage, ...], progress: float, rng: np.random.Generator) -> Size:
    """A size of the stage that ``progress`` (share of the budget used) has reached.

    All processes of a distributed run must draw the same one: give them equally seeded ``rng``.
    """
    mix = [stage for stage in stages if stage.start <= progress][-1].mix
    weights = np.array([weight for _, weight in mix])
    return mix[int(rng.choice(len(mix), p=weights / weights.sum()))][0]


def batch_for(size: Size, tokens: int) -> int:
    """Samples per step that ``tokens`` latent tokens allow: 160 at most, 4 at least, 2 of very large ones."""
    return min(160, max(2 if size.tokens > 1000 else 4, round(tokens / size.tokens)))
