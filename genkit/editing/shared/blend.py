"""Local blending: a change only where the attention of its words is, read from the run itself or from the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import ReadMaps, Rule, Where
from genkit.control.alignment import Alignment
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.model import EditModel
from genkit.editing.shared.prompts import positions

#: Tokens of the map that words are read from: 16 x 16 of Stable Diffusion at 512 pixels.
_TOKENS = 256
#: Halvings of the levels on the way to the one with a given share of noise.
_HALVINGS = 12
_READ = "acting"


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
        grown = on_latents(torch.cat([maps.mean(name, self.grid) for name in names], -1), like)
        return grown / grown.amax().clamp(min=1e-12)


def acting(
    model: EditModel, source: torch.Tensor, prompt: str, words: tuple[str, ...], slots: int | None = None
) -> torch.Tensor:
    """Where words act in a picture or clip itself: (1, 1, [T,] h, w), from 0 where they act least to 1.

    The denoiser looks at the input with as much noise as signal. Maps of a run's own first steps tell little: there is
    noise alone, and words act where things might come to be.

    Args:
        model: see :class:`EditModel`.
        source: (1, ...) clean latents.
        prompt: what they show. words: of the prompt; the largest of their maps counts.
        slots: text tokens, where they can be chosen.

    The noise is the same in every call: where things are does not depend on a seed. Cost: one row of the denoiser.

    Raises:
        UsageError: a word that the prompt does not have.
    """
    return from_least(read_in(model, source, prompt, words, slots)[1], source)


def read_in(
    model: EditModel, source: torch.Tensor, prompt: str, words: tuple[str, ...], slots: int | None = None
) -> tuple[tuple[int, ...], torch.Tensor]:
    """Tokens of words and how much the places of a picture or clip read each of them: (1, T, H, W, tokens) on the grid
    of maps; arguments as of :func:`acting`."""
    rows = Branches(model, {_READ: Branch(prompt)}, slots=slots)
    grid = map_grid(model, source)
    where = Where(grids=None if grid is None else (grid,), conditional=True)
    tokens = positions(model.pipe, prompt, words, rows.slots)
    level = level_of(model)
    noisy = model.noised(source, model.draw(source, torch.Generator().manual_seed(0)), level)
    with rows.under([ReadMaps(name=_READ, of=_READ, tokens=tokens, where=where)]):
        rows({_READ: noisy}, level, 0, 1)
        return tokens, rows.control.maps.latest(_READ, grid)


def from_least(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The largest of maps (1, T, H, W, tokens) on the grid of latents, from 0 where it is least to 1: (1, 1, ...)."""
    found = on_latents(maps, like, smooth=True)
    least = found.amin()
    return (found - least) / (found.amax() - least).clamp(min=1e-12)


def level_of(model: EditModel, ratio: float = 1.0) -> float:
    """The noise level with ``ratio`` times as much signal as noise."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        signal, spread = model.parts(middle)
        low, high = (middle, high) if signal > ratio * spread else (low, middle)
    return (low + high) / 2


def on_latents(found: torch.Tensor, like: torch.Tensor, smooth: bool = False) -> torch.Tensor:
    """The largest of maps (rows, T, H, W, words) of the first row, on the grid of latents: (1, 1, [T,] h, w).

    ``smooth``: with slopes between tokens in place of steps, so that a threshold cuts along outlines.
    """
    found = found[:1].amax(-1)[:, None].float()
    size = like.shape[2:]
    if len(size) == 2:
        found = found[:, :, 0]
    mode = "nearest" if not smooth else "bilinear" if len(size) == 2 else "trilinear"
    return torch.nn.functional.interpolate(found, size=tuple(size), mode=mode).to(like.device)


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
