"""How many tiles a window visits: the speed-up simulator, the full-tile test and the choice of a tile.

A tile is a box of the token grid. Per axis, a query tile visits the key tiles from the start of its first query's
window to the end of its last query's; axes multiply. Nothing here looks at data or at pairs of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

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
    return prod(
        sum(axis_visits(table, tq, tk).visited) for table, tq, tk in zip(tables, tile_q, tile_k, strict=True)
    )


def fully_sparse(tables: tuple[AxisTable, ...], tile_q: Tile, tile_k: Tile) -> bool:
    """Whether no visited key tile is partial, so that no per-pair test is needed anywhere."""
    return all(
        all(axis_visits(table, tq, tk).full) for table, tq, tk in zip(tables, tile_q, tile_k, strict=True)
    )


def speed_bound(tables: tuple[AxisTable, ...], tile_q: Tile, tile_k: Tile) -> float:
    """Speed-up over an unpermuted dense kernel if time were proportional to visited tiles."""
    tokens = prod(table.window.length for table in tables)
    dense = ceil(tokens / prod(tile_q)) * ceil(tokens / prod(tile_k))
    return dense / visited_tiles(tables, tile_q, tile_k)


def flop_bound(tables: tuple[AxisTable, ...]) -> float:
    """Speed-up if only wanted pairs cost time: all pairs over visible pairs."""
    return prod(table.window.length for table in tables) ** 2 / prod(table.pairs() for table in tables)


def _powers(limit: int, axis: int) -> list[int]:
    """Powers of two up to ``limit`` that are not longer than an axis needs."""
    sizes, size = [], 1
    while size <= limit:
        sizes.append(size)
        if size >= axis:
            break
        size *= 2
    return sizes


def boxes(tokens: int, grid: Tile) -> list[Tile]:
    """All boxes of exactly ``tokens`` tokens (a power of two) with power-of-two sides, none longer than needed."""
    found = [
        box for box in product(*(_powers(tokens, axis) for axis in grid)) if prod(box) == tokens
    ]
    if found:
        return found
    # A grid smaller than the tile: the whole grid is one padded tile, stretched along the width.
    sides = [_powers(tokens, axis)[-1] for axis in grid]
    sides[2] = max(1, tokens // (sides[0] * sides[1]))
    return [tuple(sides)] if prod(sides) == tokens else []


@dataclass(frozen=True)
class TileChoice:
    """A pair of tiles (``key`` divides ``query`` on every axis) and the speed-up bound they give."""

    query: Tile
    key: Tile
    bound: float
    full: bool


@lru_cache(maxsize=256)
def choose_tiles(tables: tuple[AxisTable, ...], tokens_q: int, tokens_k: int) -> TileChoice | None:
    """The pair of boxes that visits least, for a kernel with ``tokens_q`` query rows and ``tokens_k`` keys per block.

    Both are powers of two and the key box divides the query box, so that one permutation serves queries and keys.
    Ties go to fully block-sparse pairs, then to boxes closest to cubes. None when no box fits.
    """
    grid = tuple(table.window.length for table in tables)
    best: tuple[tuple[float, bool, int], TileChoice] | None = None
    for query in boxes(tokens_q, grid):
        for key in boxes(tokens_k, grid):
            if any(q % k for q, k in zip(query, key, strict=True)):
                continue
            bound, full = speed_bound(tables, query, key), fully_sparse(tables, query, key)
            rank = (round(bound, 6), full, -max(query) - max(key))
            if best is None or rank > best[0]:
                best = rank, TileChoice(query, key, bound, full)
    return best[1] if best else None
