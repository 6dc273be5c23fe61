"""Which blocks of the grid a bias leaves within reach of each other, and the boxes that suit it."""

from __future__ import annotations

from itertools import product
from math import ceil, prod

import torch

from genkit.attention.biases import Grid, Tables

Box = tuple[int, int, int]


def boxes_of(grid: Grid, block: int) -> list[Box]:
    """Boxes of at most ``block`` tokens, sides powers of two or the whole axis."""
    sides = [sorted({min(n, 2**power) for power in range(ceil(block).bit_length())}) for n in grid]
    full = [box for box in product(*sides) if prod(box) <= block]
    return [box for box in full if 2 * prod(box) > block or box == grid] or [grid]


def within_reach(tables: Tables, grid: Grid, box: Box, cutoff: float) -> torch.Tensor:
    """bool (heads|1, M, M) in the order of boxes: pairs of boxes that hold a pair of places with a bias >= -cutoff.

    The bias is a sum over axes, so the largest of two boxes is the sum of the axes' largest.
    """
    total = torch.zeros(1, 1, 1, 1, 1, 1, 1, dtype=torch.float64)
    for axis, (table, n, side) in enumerate(zip(tables, grid, box, strict=True)):
        count = ceil(n / side)
        shape = [1] * 7
        shape[1 + axis] = shape[4 + axis] = count
        if table is None:
            total = total + torch.zeros(shape, dtype=torch.float64)
            continue
        step = torch.arange(n)
        pairs = table.double()[:, step[:, None] - step + n - 1]
        shape[0] = pairs.shape[0]
        padded = torch.nn.functional.pad(pairs, (0, count * side - n) * 2, value=-torch.inf)
        most = padded.unflatten(2, (count, side)).unflatten(1, (count, side)).amax((2, 4))
        total = total + most.view(shape)
    return total.flatten(4).flatten(1, 3) >= -cutoff
