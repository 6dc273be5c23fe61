"""How many tiles a window visits: the speed-up simulator, the full-tile test and the choice of a tile.

A tile is a box of the token grid. Per axis, a query tile visits the key tiles from the start of its first query's
window to the end of its last query's; axes multiply. Nothing here looks at data or at pairs of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np

from genkit.attention.windows import AxisTable

Tile = tuple[int, int, int]


@dataclass(frozen=True)
class AxisVisits:
    """Visits of one axis: for every query tile, the number of key tiles visited and whether all of them are full."""

    visited: tuple[int, ...]
    full: tuple[bool, ...]


@lru_cache(maxsize=4096)
def axis_visits(table: AxisTable, tile_q: int, tile_k: int) -> AxisVisits:
    """Visits per query tile of one axis; tiles start anew in every dilation group."""
    visited, full = [], []
    for first, length in zip(table.offsets, table.groups, strict=True):
        for low in range(0, length, tile_q):
            high = min(low + tile_q, length)
            starts = [table.start[first + p] - first for p in range(low, high)]
            ends = [table.end[first + p] - first for p in range(low, high)]
            tile_low, tile_high = min(starts) // tile_k, ceil(max(ends) / tile_k)
            visited.append(tile_high - tile_low)
            full.append(max(starts) <= tile_low * tile_k and min(ends) >= min(tile_high * tile_k, length))
    return AxisVisits(tuple(visited), tuple(full))


def visited_tiles(tables: tuple[AxisTable, ...], tile_q: Tile, tile_k: Tile) -> int:
    """Number of (query tile, key tile) pairs visited on the padded tile grid."""
    return prod(sum(axis_visits(table, tq, tk).visited) for table, tq, tk in zip(tables, tile_q, tile_k, strict=True))


def fully_sparse(tables: tuple[AxisTable, ...], tile_q: Tile, tile_k: Tile) -> bool:
    """Whether no visited key tile is partial, so that no per-pair test is needed anywhere."""
    return all(all(axis_visits(table, tq, tk).full) for table, tq, tk in zip(tables, tile_q, tile_k, strict=True))


def speed_bound(tables: tuple[AxisTable, ...], tile_q: Tile, tile_k: Tile) -> float:
    """Speed-up over an unpermuted dense kernel if time were proportional to visited tiles."""
    tokens = prod(table.window.length for table in tables)
    dense = ceil(tokens / prod(tile_q)) * ceil(tokens / prod(tile_k))
    return dense / visited_tiles(tables, tile_q, tile_k)


def flop_bound(tables: tuple[AxisTable, ...]) -> float:
    """Speed-up if only wanted pairs cost time: all pairs over visible pairs."""
    return prod(table.window.length for table in tables) ** 2 / prod(table.pairs() for table in tables)


@dataclass(frozen=True)
class Kernel:
    """What a kernel asks of tiles, and what its work costs.

    Args:
        query_tokens, key_tokens: smallest and largest tokens per tile.
        rows: (from this many query rows on, cost of a token pair) in ascending order.
        per_key: overhead of a visited tile pair, shared out over its keys.
        partial: extra cost of a pair that needs a mask.
    """

    query_tokens: tuple[int, int]
    key_tokens: tuple[int, int]
    rows: tuple[tuple[int, float], ...]
    per_key: float
    partial: float


# torch's CPU kernel works in tiles of 32, 64 or 256 rows, by the number of queries it is given; costs measured.
CPU = Kernel((64, 1024), (16, 128), rows=((0, 1.65), (192, 1.35), (768, 1.0)), per_key=4.0, partial=0.4)


@dataclass(frozen=True)
class TileChoice:
    """A query tile and a key tile, the speed-up bound they give and whether no visited pair is partial."""

    query: Tile
    key: Tile
    bound: float
    full: bool

    @property
    def block_q(self) -> int:
        """Tokens of a query tile."""
        return prod(self.query)

    @property
    def block_k(self) -> int:
        """Tokens of a key tile."""
        return prod(self.key)

    @property
    def words(self) -> str:
        """The tiles in words."""
        tiles = (" x ".join(map(str, tile)) for tile in (self.query, self.key))
        return f"tiles {' by '.join(tiles)}{', none of them partial' if self.full else ''}"


def _sides(length: int, most: int) -> list[int]:
    """Useful tile sides of an axis: the smallest side for every number of tiles."""
    cut = sorted({-(-length // count) for count in range(1, length + 1)})
    return [side for side in cut if side <= most]


@dataclass(frozen=True)
class _AxisPairs:
    """Every pair of sides of one axis with its padded work and the share of it that needs no mask."""

    query: np.ndarray
    key: np.ndarray
    work: np.ndarray
    full: np.ndarray

    @classmethod
    def of(cls, table: AxisTable, query: int | None) -> _AxisPairs:
        length = max(table.groups)
        queries = [query] if query else _sides(length, 32)
        keys = _sides(length, 32)
        rows = []
        for tq, tk in product(queries, keys):
            visits = axis_visits(table, tq, tk)
            total = sum(visits.visited)
            whole = sum(count for count, full in zip(visits.visited, visits.full, strict=True) if full)
            rows.append((tq, tk, total * tq * tk, whole / total))
        return cls(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))


def _outer(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    return first[:, None, None] * second[None, :, None] * third[None, None, :]


@lru_cache(maxsize=256)
def choose_tiles(tables: tuple[AxisTable, ...], query: Tile | None = None) -> TileChoice:
    """The query and key tile that cost least on the CPU, by simulation (GPUs: :mod:`genkit.attention.strips`).

    Args:
        tables: the windows of the grid.
        query: a query tile to keep; only the key tile is chosen then.
    """
    axes = [_AxisPairs.of(table, None if query is None else query[axis]) for axis, table in enumerate(tables)]
    rows, keys = (_outer(*(getattr(axis, name) for axis in axes)) for name in ("query", "key"))
    work, full = (_outer(*(getattr(axis, name) for axis in axes)) for name in ("work", "full"))
    starts, costs = (np.array(column) for column in zip(*CPU.rows, strict=True))
    pair = costs[np.searchsorted(starts, rows, side="right") - 1]
    cost = work * (pair + CPU.per_key / keys + CPU.partial * (1 - full))
    grid = tuple(table.window.length for table in tables)
    misfit = _outside(keys, CPU.key_tokens, prod(grid))
    if query is None:
        misfit = misfit + _outside(rows, CPU.query_tokens, prod(grid))
    best = np.unravel_index(np.argmin(cost * (1 + 1e3 * misfit)), cost.shape)
    query_tile = tuple(int(axis.query[at]) for axis, at in zip(axes, best, strict=True))
    key_tile = tuple(int(axis.key[at]) for axis, at in zip(axes, best, strict=True))
    return TileChoice(
        query_tile, key_tile, speed_bound(tables, query_tile, key_tile), fully_sparse(tables, query_tile, key_tile)
    )


def _outside(tokens: np.ndarray, allowed: tuple[int, int], grid: int) -> np.ndarray:
    """How far (in octaves) a tile lies outside the allowed number of tokens; a small grid lowers the bounds."""
    low, high = min(allowed[0], grid), allowed[1]
    return np.maximum(0, np.log2(low / tokens)) + np.maximum(0, np.log2(tokens / high))
