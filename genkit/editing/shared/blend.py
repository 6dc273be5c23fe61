"""Local blending: a change only where the attention of its words is, read from the run itself."""

from __future__ import annotations

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
        role: branch where those are read: "layout" or "source".
        target: branch where the others are read.
        name: of the maps, unique in a control.
        grid: (H, W) or (T, H, W) tokens of the layers that are read.
    """

    tokens: tuple[int, ...]
    alignment: Alignment
    role: str
    target: str
    name: str
    grid: tuple[int, ...]

    def _split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Positions read in ``role`` (of the source prompt) and in ``target``."""
        shared = [self.alignment.source[token] for token in self.tokens]
        own = tuple(token for token, partner in zip(self.tokens, shared, strict=True) if partner is None)
        return tuple(partner for partner in shared if partner is not None), own

    def rules(self) -> list[Rule]:
        """What reads the maps."""
        where = Where(grids=(self.grid,), conditional=True)
        shared, own = self._split()
        found: list[Rule] = []
        if shared:
            found.append(ReadMaps(name=f"{self.name}-shared", of=self.role, tokens=shared, where=where))
        if own:
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


def map_grid(model: EditModel, latents: torch.Tensor) -> tuple[int, ...]:
    """The token grid whose cross-attention tells best where words act: of a UNet the one nearest to 16 x 16 tokens, of
    a transformer its only one.

    Args:
        model: see :class:`EditModel`. latents: (1, ...) of a run.
    """
    network = model.network(1.0)
    sides = tuple(latents.shape[2:])
    kinds = network.config.get("down_block_types")
    if kinds is None:
        patch = network.config.get("patch_size", 1)
        steps = tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch)
        if model.record.shift is not None and not isinstance(patch, (tuple, list)) and patch == 1:
            steps = (2, 2)  # families that pack two by two latents into a token before the denoiser
        if len(steps) < len(sides):
            steps = (1, *steps)
        return tuple(side // step for side, step in zip(sides, steps[-len(sides) :], strict=True))
    grids = []
    for kind in kinds:
        if "CrossAttn" in kind:
            grids.append(sides)
        sides = tuple(-(-side // 2) for side in sides)
    return min(grids or [sides], key=lambda grid: abs(torch.tensor(grid).prod().log2() - torch.tensor(_TOKENS).log2()))


def inside(found: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where a map reaches a threshold, bool."""
    return found > threshold


def rules_of(maps: Sequence[WordMaps | None]) -> list[Rule]:
    """Rules of all maps that there are."""
    return [rule for each in maps if each is not None for rule in each.rules()]
