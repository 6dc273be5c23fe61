"""Local blending: a change only where the attention of its words is, read from the run itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import ReadMaps, Rule, Where
from genkit.control.alignment import Alignment
from genkit.editing.shared.model import EditModel

#: Tokens of the map that words are read from: 16 x 16 of Stable Diffusion at 512 pixels.
_TOKENS = 256


@dataclass(frozen=True)
class WordMaps:
    """Where words act: mean over steps, heads and layers of one grid, the largest of the words.

    Args:
        tokens: positions of the words in the target prompt.
        alignment: a word with a partner in the source prompt is read there.
        reads: branches where those are read, each with its steps as :class:`genkit.control.Where` takes them.
        target: branch where the others are read.
        name: of the maps, unique in a control.
        grid: (H, W) tokens of the layers that are read; None = all layers, of models with one grid.
    """

    tokens: tuple[int, ...]
    alignment: Alignment
    reads: tuple[tuple[str, str | None], ...]
    target: str
    name: str
    grid: tuple[int, int] | None

    def _split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Positions read in ``role`` (of the source prompt) and in ``target``."""
        shared = [self.alignment.source[token] for token in self.tokens]
        own = tuple(token for token, partner in zip(self.tokens, shared, strict=True) if partner is None)
        return tuple(partner for partner in shared if partner is not None), own

    def rules(self) -> list[Rule]:
        """What reads the maps."""
        grids = None if self.grid is None else (self.grid,)
        shared, own = self._split()
        found: list[Rule] = []
        for role, steps in self.reads if shared else ():
            where = Where(grids=grids, steps=steps, conditional=True)
            found.append(ReadMaps(name=f"{self.name}-shared", of=role, tokens=shared, where=where))
        if own:
            where = Where(grids=grids, conditional=True)
            found.append(ReadMaps(name=f"{self.name}-own", of=self.target, tokens=own, before=True, where=where))
        return found

    def read(self, maps: Any, like: torch.Tensor) -> torch.Tensor:
        """(1, 1, [T,] h, w) in 0..1: the map on the grid of latents, its largest value 1."""
        shared, own = self._split()
        names = [name for name, found in ((f"{self.name}-shared", shared), (f"{self.name}-own", own)) if found]
        found = torch.cat([maps.mean(name, self.grid) for name in names], -1).amax(-1)  # (rows, T, H, W)
        found = found[:1, None].float()
        size = like.shape[2:]
        if len(size) == 2:
            found = found[:, :, 0]
        grown = torch.nn.functional.interpolate(found, size=tuple(size), mode="nearest")
        return (grown / grown.amax().clamp(min=1e-12)).to(like.device)


def map_grid(model: EditModel, latents: torch.Tensor, tokens: int = _TOKENS) -> tuple[int, int] | None:
    """The token grid whose cross-attention tells best where words act: of a UNet the one nearest to 16 x 16 tokens;
    None for a transformer, which has one grid.

    Args:
        model: see :class:`EditModel`. latents: (1, ...) of a run.
        tokens: that a UNet's grid should have, about.
    """
    kinds = model.network(1.0).config.get("down_block_types")
    if kinds is None:
        return None
    (height, width), grids = latents.shape[2:], []
    for kind in kinds:
        if "CrossAttn" in kind:
            grids.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    # The middle of a UNet attends on the grid of its last level.
    return min(grids or [(height, width)], key=lambda grid: abs(math.log2(grid[0] * grid[1] / tokens)))


def rules_of(maps: Sequence[WordMaps | None]) -> list[Rule]:
    """Rules of all maps that there are."""
    return [rule for each in maps if each is not None for rule in each.rules()]
