"""Which tokens of the grid a block holds: blocks are cut from a walk through the grid, so that none has padding."""

from __future__ import annotations

from functools import cached_property
from math import ceil, prod, sqrt
from typing import Any

import torch

from genkit.attention.dynamic import Permutation
from genkit.kernels.permutation import Strips
from genkit.kernels.scores.rows import relative_places
from genkit.layout import TokenLayout

Across = tuple[int, int]


def auto_across(grid: tuple[int, int, int], block: int) -> Across:
    """Frames and rows across a strip, so that a block is about as long on every axis; pictures have one frame."""
    frames = min(grid[0], round(block ** (1 / 3)))
    return frames, min(grid[1], max(1, round(sqrt(block / frames))))


class GridBlocks:
    """The grid's tokens in blocks of equal size; only the last one may have fewer.

    Args:
        grid: tokens per axis (T, H, W).
        block: tokens per block.
        across: frames and rows across the strips that blocks are cut from; (1, 1) is the order of the sequence.
        walk: (T*H*W,) int64, another order of the tokens to cut blocks from.

    Attributes:
        permutation: from the order of the sequence. places: (M, 3) int64, where a block lies, in blocks.
        own: (1, 1, M, M) bool, the diagonal. first: (M,) bool, blocks that hold a token of the first frame.
        sizes: (M,) float64, tokens.
    """

    def __init__(self, grid: tuple[int, int, int], block: int, across: Across, walk: torch.Tensor | None = None):
        if walk is None:
            walk = torch.arange(prod(grid)) if across == (1, 1) else Strips((*across, None)).walk(grid)
        self.block = block
        self.permutation = Permutation(walk)
        count = ceil(len(walk) / block)
        frame, row = walk // (grid[1] * grid[2]), walk // grid[2] % grid[1]
        where = torch.stack([frame, row, walk % grid[2]], 1)
        sides = (across[0], across[1], max(1, block // prod(across)))
        pieces = [part.double().mean(0) for part in where.split(block)]
        self.places = torch.stack([(piece / torch.tensor(sides)).floor().long() for piece in pieces])
        self.own = torch.eye(count, dtype=torch.bool)[None, None]
        self.first = torch.stack([(part == 0).any() for part in frame.split(block)])
        self.sizes = torch.tensor([len(part) for part in walk.split(block)], dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of blocks M."""
        return len(self.sizes)

    @cached_property
    def apart(self) -> torch.Tensor:
        """(M, M) int64: pairs of blocks that lie equally far apart have the same number. Read it after :meth:`to`."""
        return relative_places(self.places)

    def share(self, read: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """The share of all token pairs that is read, as a scalar tensor.

        Args:
            read: (B, H, M, M), the share of the pairs of two blocks.
            layout: tokens outside the grid see all and are seen by all.
        """
        pairs = self.sizes[:, None] * self.sizes
        inside = (read.double().flatten(0, -3).mean(0) * pairs).sum() / pairs.sum()
        return share_of_all(inside, layout)

    def to(self, device: torch.device) -> GridBlocks:
        """The same with its tables on ``device``."""
        for name in ("permutation", "places", "own", "first", "sizes"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def share_of_all(inside: Any, layout: TokenLayout) -> Any:
    """The share of all token pairs that is read, from that of the pairs of grid tokens, copies of the grid included."""
    return 1 - (layout.all_grids_length / layout.length) ** 2 * (1 - inside)
