"""Where subjects are in pictures: from boxes, or from the attention of their words while a rehearsal runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import Control, KeepPairs, ReadMaps, Rule, Where
from genkit.control.spans import text_tokens
from genkit.editing.ir_diffusion.cast import Place
from genkit.editing.ir_diffusion.masks import disjoint, largest_part, otsu

#: How often a word's map is spread along self-attention; the mean of all rounds is taken (DreamStory).
ROUNDS = 4
_EPSILON = 1e-12


@dataclass
class Finder:
    """Reads where words act in some rows of a run.

    Args:
        tokens: of every place that is looked for, positions of its words among the text tokens.
        grid: (H, W) tokens of the layers that are read; None = all, of models with one grid.
    """

    tokens: Mapping[Place, tuple[int, ...]]
    grid: tuple[int, int] | None

    def __post_init__(self) -> None:
        self.found: dict[Place, torch.Tensor] = {}

    @classmethod
    def of(
        cls, pipe: Any, wanted: Mapping[Place, tuple[str, str]], grid: tuple[int, int] | None, slots: int | None
    ) -> Finder:
        """``wanted``: of every place the row's prompt and the words."""
        return cls({place: text_tokens(pipe, *texts, slots=slots) for place, texts in wanted.items()}, grid)

    def rules(self) -> list[Rule]:
        """What is read."""
        where = Where(grids=None if self.grid is None else (self.grid,), conditional=True)
        rows = dict.fromkeys(role for role, _ in self.tokens)
        found: list[Rule] = [KeepPairs(name=role, of=role, where=where) for role in rows]
        for (role, number), tokens in self.tokens.items():
            found.append(ReadMaps(name=f"{role}/{number}", of=role, tokens=tokens, where=where))
        return found

    def take(self, control: Control) -> None:
        """Take in the maps of the latest call, spread along self-attention."""
        for role, number in self.tokens:
            value = control.maps.latest(f"{role}/{number}", self.grid).mean(-1)  # (1, T, H, W)
            total = torch.zeros_like(value)
            for _ in range(ROUNDS):
                value = control.propagate(role, value, grid=self.grid)
                total = total + value / ROUNDS
            before = self.found.get((role, number))
            self.found[role, number] = total if before is None else before + total

    def masks(self, size: tuple[int, int]) -> dict[Place, torch.Tensor]:
        """bool (H, W) of every place, at a size.

        Of several subjects in a row a pixel goes to the one whose words act on it most, each measured by its own
        largest value; of what is left of a subject's mask only the largest connected part counts.
        """
        scaled = {place: _scaled(found, size) for place, found in self.found.items()}
        made = {}
        for (role, number), value in scaled.items():
            others = [other for (row, each), other in scaled.items() if row == role and each != number]
            mask = value > otsu(value)
            for other in others:
                mask = mask & (value >= other)
            made[role, number] = largest_part(mask)
        return made


def _scaled(found: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map (1, 1, h, w) at a size, its values stretched to 0..1."""
    value = torch.nn.functional.interpolate(found.float(), size, mode="bilinear")[0, 0].cpu()
    low, high = value.min(), value.max()
    return (value - low) / (high - low).clamp_min(_EPSILON)


def disjoint_rows(masks: Mapping[Place, torch.Tensor], roles: Sequence[str]) -> dict[Place, torch.Tensor]:
    """Masks of which no two of one row overlap; see :func:`genkit.editing.ir_diffusion.masks.disjoint`."""
    found: dict[Place, torch.Tensor] = {}
    for role in roles:
        places = [place for place in masks if place[0] == role]
        found.update(zip(places, disjoint([masks[place] for place in places]), strict=True))
    return found
