"""Which walk through the grid a GPU's blocks are cut from: the one whose blocks visit fewest pairs, by counting.

A kernel for a GPU wants blocks of 128 queries and 64 or 128 keys, whatever the grid. Boxes of exactly so many tokens
seldom fit: a grid of 30 x 52 tokens is cut badly by powers of two, and blocks at the border are half empty. Blocks
that are cut from a walk in strips (:class:`~genkit.kernels.permutation.Strips`) are all full, and a strip may be as
wide as suits the windows: where every frame is seen, a block holds the same few places of all frames.

Every pair of walks, one for queries and one for keys, is ranked by an estimate that takes the axes one by one; the
best are counted block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkit.attention.windows import AxisTable
from genkit.kernels.permutation import Strips, TokenOrder

Tile = tuple[int, int, int]
Tables = tuple[AxisTable, AxisTable, AxisTable]

BLOCK_Q, BLOCKS_K = 128, (64, 128)
#: Work of a visited pair of blocks besides its pairs of tokens, in pairs per query, and what a pair costs more where
#: the rule is asked.
PER_VISIT, PARTIAL = 8.0, 0.8
_COUNTED = 64  # pairs of walks that are counted
_ROWS = 128  # query blocks looked at in a count


@dataclass(frozen=True)
class StripChoice:
    """How queries and keys of the grid are put into blocks.

    Args:
        query: the walk that query blocks are cut from, or the box that a query block covers where a caller gave one.
        key: the walk that key blocks are cut from.
        block_q, block_k: tokens per block.
    """

    query: Strips | Tile
    key: Strips
    block_q: int
    block_k: int

    @property
    def words(self) -> str:
        """What it is, in words."""
        sides = (
            f"blocks of {block} {name} from {_words(walk)}"
            for block, name, walk in ((self.block_q, "queries", self.query), (self.block_k, "keys", self.key))
        )
        return ", ".join(sides)


def _words(walk: Strips | Tile) -> str:
    names = ("time", "height", "width")
    if not isinstance(walk, Strips):
        return "boxes of " + " x ".join(map(str, walk))
    across = " x ".join(str(side) for side in walk.sides if side is not None)
    return f"strips of {across} along {names[walk.run]}"


@lru_cache(maxsize=256)
def choose_strips(tables: Tables, query: Tile | None = None) -> StripChoice:
    """The walks and the size of key blocks that cost least on a GPU: a pure function of the windows.

    Args:
        tables: the windows of the grid.
        query: a box that query blocks are to cover; only the keys' walk is chosen then.

    Cost: some tenths of a second, kept.
    """
    grid = [table.window.length for table in tables]
    queries, block_q = ([query], prod(query)) if query else (candidates(grid, BLOCK_Q), BLOCK_Q)
    keys = [(walk, block) for block in BLOCKS_K for walk in candidates(grid, block)]
    rows, columns, costs = {}, {}, {}
    for i, j in _ranked(tables, [(walk, block_q) for walk in queries], keys):
        if i not in rows:
            rows[i] = QueryBlocks.of(tables, queries[i], block_q)
        if j not in columns:
            columns[j] = KeyBlocks.of(tables, *keys[j])
        costs[i, j] = cost(*rows[i].visits(columns[j], _ROWS), block_q, keys[j][1])
    # of equals, one walk for both sides, which are then in one order
    i, j = min(costs, key=lambda pair: (costs[pair], (queries[pair[0]], block_q) != keys[pair[1]]))
    return StripChoice(queries[i], keys[j][0], block_q, keys[j][1])


def cost(visited: float, partial: float, block_q: int, block_k: int) -> float:
    """Work of visited pairs of blocks, some of them partial, in pairs of tokens."""
    return visited * block_q * (block_k + PER_VISIT) + partial * block_q * block_k * PARTIAL


def order_of(tables: Tables, walk: Strips | Tile, block: int, segments: Sequence[tuple[str, int]] = ()) -> TokenOrder:
    """The tokens of a grid, and of what stands around it, in blocks."""
    grid, dilation = ([getattr(table.window, name) for table in tables] for name in ("length", "dilation"))
    if isinstance(walk, Strips):
        return TokenOrder.from_strips(grid, walk, block, segments, dilation)
    return TokenOrder.from_grid(grid, walk, segments, dilation)


def candidates(grid: Sequence[int], block: int) -> list[Strips]:
    """The walks worth looking at: every axis to run along, and across it every number of strips that leaves a slice of
    a strip no larger than a block."""
    found = []
    for run, length in enumerate(grid):
        if length == 1 and max(grid) > 1:
            continue
        across = [axis for axis in range(len(grid)) if axis != run]
        first, second = (sorted({-(-grid[axis] // count) for count in range(1, grid[axis] + 1)}) for axis in across)
        for one in first:
            for other in second:
                if one * other > block:
                    break
                sides: list[int | None] = [one, other]
                sides.insert(run, None)
                exact = all(grid[axis] % side == 0 for axis, side in zip(across, (one, other), strict=True))
                found += [Strips(tuple(sides), even) for even in ((True,) if exact else (True, False))]
    return found


# ---- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyBlocks:
    """The smallest and the largest place of every key block's tokens on every axis that is limited: (A, Mk) each."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, tables: Tables, walk: Strips | Tile, block: int) -> KeyBlocks:
        """The blocks cut from a walk."""
        places = _places(tables, walk, block)
        return cls(torch.stack([x.amin(1) for x in places]), torch.stack([x.amax(1) for x in places]))


@dataclass(frozen=True)
class QueryBlocks:
    """Over the queries of each block, smallest and largest start, smallest and largest end of their windows on every
    axis that is limited: (A, Mq) each."""

    first_start: Tensor
    last_start: Tensor
    first_end: Tensor
    last_end: Tensor

    @classmethod
    def of(cls, tables: Tables, walk: Strips | Tile, block: int) -> QueryBlocks:
        """The blocks cut from a walk, or boxes."""
        keys = KeyBlocks.of(tables, walk, block)
        edges = []
        for name in ("start", "end"):  # both ascend with the place
            values = [torch.tensor(getattr(tables[axis], name), dtype=torch.int32) for axis in _limited(tables)]
            for places in (keys.low, keys.high):
                edges.append(torch.stack([value[at.long()] for value, at in zip(values, places, strict=True)]))
        return cls(*edges)

    def visits(self, keys: KeyBlocks, rows: int | None = None) -> tuple[float, float]:
        """Pairs of blocks visited, and those of them that are partial.

        Args:
            rows: query blocks looked at, spread over all without a period; None = all of them.
        """
        blocks = self.first_start.shape[1]
        taken = torch.arange(blocks)
        if rows is not None and rows < blocks:
            golden = (5**0.5 - 1) / 2
            taken = (torch.arange(rows, dtype=torch.float64) * golden % 1 * blocks).long()
        edges = (self.first_start, self.last_start, self.first_end, self.last_end)
        some: Any = None
        every: Any = None
        for low, high, *sides in zip(keys.low, keys.high, *(edge[:, taken, None] for edge in edges), strict=True):
            first_start, last_start, first_end, last_end = sides
            touched, covered = (high >= first_start) & (low < last_end), (low >= last_start) & (high < first_end)
            some, every = (touched, covered) if some is None else (some & touched, every & covered)
        visited, share = some.count_nonzero().item(), blocks / len(taken)
        return visited * share, (visited - (some & every).count_nonzero().item()) * share


def _limited(tables: Tables) -> list[int]:
    """Axes that hide something; where none does the first one stands for all."""
    return [axis for axis, table in enumerate(tables) if not table.whole] or [0]


def _places(tables: Tables, walk: Strips | Tile, block: int) -> list[Tensor]:
    """(M, block) int32 per limited axis: the place of every token of every block; a slot without a token repeats
    another one of its block."""
    grid, dilation = ([getattr(table.window, name) for table in tables] for name in ("length", "dilation"))
    if isinstance(walk, Strips):
        tokens = walk.walk(grid, dilation)
        tokens = torch.cat([tokens, tokens[-1:].expand(-len(tokens) % block)]).view(-1, block)
    else:
        tokens = TokenOrder.from_grid(grid, walk, dilation=dilation).gather.view(-1, block)
        tokens = torch.where(tokens < 0, tokens[:, :1], tokens)
    found = []
    for axis in _limited(tables):
        shape = [1, 1, 1]
        shape[axis] = -1
        table = torch.tensor(tables[axis].slot, dtype=torch.int32).view(shape)
        found.append(table.expand(*grid).reshape(-1)[tokens])
    return found


# ---- estimates -------------------------------------------------------------------------------------------------------


def _ranked(
    tables: Tables, queries: Sequence[tuple[Strips | Tile, int]], keys: Sequence[tuple[Strips, int]]
) -> list[tuple[int, int]]:
    """Numbers of the best walks of queries and keys (given with their blocks), as far as the axes tell one by one."""
    grid = [table.window.length for table in tables]
    reaches = [np.array([_reach(walk, grid, block) for walk, block in walks]) for walks in (queries, keys)]
    visited = full = np.ones((len(queries), len(keys)))
    for axis in _limited(tables):
        (q, row), (k, column) = (np.unique(side[:, axis], axis=0, return_inverse=True) for side in reaches)
        seen, inside = (found[row.reshape(-1, 1), column.reshape(-1)] for found in _axis_visits(tables[axis], q, k))
        visited, full = visited * seen, full * inside
    each = np.array([block for _, block in keys])
    work = visited * (1 + PER_VISIT / each + PARTIAL) - PARTIAL * full
    most = min(_COUNTED, work.size)
    best = np.argpartition(work, most - 1, axis=None)[:most]
    return [divmod(int(at), len(keys)) for at in best[np.argsort(work.flat[best], kind="stable")]]


def _reach(walk: Strips | Tile, grid: Sequence[int], block: int) -> list[tuple[float, float, float]]:
    """How blocks lie along every axis: how far they reach on average, 1 where they may begin anywhere rather than at
    multiples of that, and the share of blocks that reach twice as far."""
    if not isinstance(walk, Strips):
        return [(min(side, length), 0.0, 0.0) for side, length in zip(walk, grid, strict=True)]
    reach = [
        1.0 if side is None else length / -(-length // side) if walk.even else float(side)
        for side, length in zip(walk.sides, grid, strict=True)
    ]
    loose, twice = [0.0] * len(grid), [0.0] * len(grid)
    # a block goes along its strip, where that ends into the strips beside it, and where those end into the next row
    tokens = prod(reach)
    for axis in (walk.run, *(axis for axis in reversed(range(len(grid))) if axis != walk.run)):
        if tokens >= block:
            twice[axis] = block / tokens if tokens % block else 0.0
            break
        steps = min(block / tokens, grid[axis] / reach[axis])
        loose[axis] = float(grid[axis] / reach[axis] % steps > 0)
        tokens *= grid[axis] / reach[axis]
        reach[axis] *= steps
    return list(zip(np.round(reach, 3), loose, np.round(twice, 2), strict=True))


def _axis_visits(table: AxisTable, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of an axis in the blocks that a query block visits, and in those that are full, on average: (n, m) each.

    Args:
        q, k: (n, 3) and (m, 3), how n kinds of query blocks and m kinds of key blocks lie, see :func:`_reach`.
    """
    length = table.window.length
    start, end = np.array(table.start), np.array(table.end)  # both ascend
    seen, inside = np.empty((len(q), len(k))), np.empty((len(q), len(k)))
    little = 1e-6  # of rounding
    reach, loose, twice = k.T
    for at, (extent, _, doubled) in enumerate(q):
        edges = np.arange(0, length, extent)
        first = np.floor(edges + little).astype(int).clip(0, length - 1)
        totals = []
        for far, share in ((extent, 1 - doubled), (2 * extent, doubled)):
            if not share:
                continue
            last = np.ceil(edges + far - little).astype(int).clip(1, length) - 1
            low, high, inner_low, inner_high = (x[:, None] for x in (start[first], end[last], start[last], end[first]))
            exact = np.ceil(high / reach - little) - np.floor(low / reach + little)
            # where an interval begins or ends inside the axis, half a block is visited besides
            free = (high - low) / reach + (low > 0) * 0.5 + (high < length) * 0.5
            visited = np.where(loose, free, exact) + twice
            top = np.where(
                inner_high >= length, np.ceil(length / reach - little), np.floor(inner_high / reach + little)
            )
            exact = top - np.ceil(inner_low / reach - little)
            free = (inner_high - inner_low) / reach - (inner_low > 0) * 0.5 - (inner_high < length) * 0.5
            full = np.where(loose, free, exact) - twice
            each = (np.minimum(x * reach, length).mean(0) for x in (visited, full.clip(0)))
            totals.append([share * x for x in each])
        seen[at], inside[at] = (sum(parts) for parts in zip(*totals, strict=True))
    return seen, inside
