"""The matrix products of native block-sparse attention: what depends on how a processor multiplies.

Scores are computed with keys along the rows and queries along the columns, so that everything per query is one vector
and keys are used as they lie in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from llvmlite import ir

from genkit.kernels.native.emitter import (
    FLOAT,
    FLOATS,
    HALVES,
    LINE,
    TILE,
    WORDS,
    Emitter,
    Step,
    constant,
)

Part = dict[str, ir.Value]  # memory for queries that run together, by name


class Products(ABC):
    """Emits products for one part: 16 queries on each of ``SIDES`` sides.

    Matrices of floats with a row per key or channel have 16 * SIDES columns, one for each query.

    Args:
        dim: channels of a head. unit: keys of a visit.
    """

    SIDES: ClassVar[int]
    PARTS: ClassVar[int]  # that run together, one while the vector units work on the other
    SIZE: ClassVar[int]  # bytes of a number of the inputs
    FINE: ClassVar[bool]  # whether exponentials are to be as exact as floats are

    def __init__(self, e: Emitter, dim: int, unit: int):
        self.e, self.dim, self.unit = e, dim, unit
        self.width = self.SIDES * LINE  # bytes of a row of floats

    @abstractmethod
    def open(self) -> None:
        """Code before everything else."""

    @abstractmethod
    def close(self) -> None:
        """Code after everything else."""

    @abstractmethod
    def sizes(self, over_keys: Sequence[str], over_queries: Sequence[str]) -> dict[str, int]:
        """Bytes of a part's memory for weights with these names, which products over keys or queries will want."""

    @property
    @abstractmethod
    def packed(self) -> int:
        """Bytes of the packed queries of a part."""

    @abstractmethod
    def pack_columns(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        """Pack 16 rows (D) of a side as a factor of products over channels."""

    @abstractmethod
    def pack_rows(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        """Pack 16 rows (D) of a side as a factor of products over queries."""

    @abstractmethod
    def scores(self, keys: ir.Value, packed: ir.Value, into: ir.Value) -> list[Step]:
        """(unit, queries) floats: products over channels of keys (unit, D) and packed columns."""

    @abstractmethod
    def over_keys(self, values: ir.Value, part: Part, name: str, into: ir.Value) -> list[Step]:
        """Add to (D, queries) floats the products over the keys of a unit of values and weights."""

    @abstractmethod
    def over_queries(self, part: Part, name: str, packed: ir.Value, into: ir.Value) -> list[Step]:
        """Add to (unit, D) floats the products over queries of weights and packed rows."""

    @abstractmethod
    def keep(self, part: Part, name: str, row: int, found: Sequence[Sequence[ir.Value]], side: int = 0) -> None:
        """Keep weights of the keys ``row`` and the next one, each of some sides from ``side`` on."""

    @abstractmethod
    def number(self, x: ir.Value) -> ir.Value:
        """Floats as numbers of the inputs."""


class Tiles(Products):
    """bfloat16 in AMX tiles: 0 to 3 are two times two of the result, 4 and 5 the left factor, 6 and 7 the right one.

    Values over keys come as (unit / 32, D, 32). Weights lie in words of two keys for products over keys, and in rows of
    32 queries ("... rows") for products over queries.
    """

    SIDES, PARTS, SIZE, FINE = 2, 2, 2, False

    def open(self) -> None:
        self.e.open_tiles()

    def close(self) -> None:
        self.e.close_tiles()

    def sizes(self, over_keys: Sequence[str], over_queries: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys([*over_keys, *(f"{name} rows" for name in over_queries)], self.unit * LINE)

    @property
    def packed(self) -> int:
        return self.dim * LINE

    def pack_columns(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        e = self.e
        with e.loop(0, self.dim // 32) as channels:
            words = [e.read(WORDS, e.at(line, e.multiply(channels, LINE)), 2) for line in lines]
            target = e.at(into, e.multiply(channels, 2 * TILE), e.multiply(side, TILE))
            for i, line in enumerate(e.transposed(words)):
                e.write(line, e.at(target, i * LINE))

    def pack_rows(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        e, build = self.e, self.e.build
        with e.loop(0, self.dim // 16) as channels:
            target = e.at(into, e.multiply(channels, TILE), e.multiply(side, TILE // 2))
            for i in range(0, 16, 2):
                low, high = (
                    build.zext(e.read(HALVES, e.at(line, e.multiply(channels, 32)), 2), WORDS)
                    for line in lines[i : i + 2]
                )
                e.write(build.or_(low, build.shl(high, constant(WORDS, 16))), e.at(target, i // 2 * LINE))

    def scores(self, keys: ir.Value, packed: ir.Value, into: ir.Value) -> list[Step]:
        e, steps = self.e, []
        for rows in range(0, self.unit, 32):
            steps += [lambda tile=tile: e.clear_tile(tile) for tile in range(4)]
            for channels in range(self.dim // 32):
                right = [e.at(packed, (channels * 2 + side) * TILE) for side in range(2)]
                left = [e.at(keys, (rows + side * 16) * self.dim * 2 + channels * LINE) for side in range(2)]
                steps += self._four_products(left, right, self.dim * 2)
            steps += self._four_tiles(e.store_tile, into, rows, self.width)
        return steps

    def over_keys(self, values: ir.Value, part: Part, name: str, into: ir.Value) -> list[Step]:
        e, steps = self.e, []
        for channels in range(0, self.dim, 32):
            steps += self._four_tiles(e.load_tile, into, channels, self.width)
            for keys in range(self.unit // 32):
                right = [e.at(part[name], (keys * 2 + side) * TILE) for side in range(2)]
                left = [e.at(values, (keys * self.dim + channels + side * 16) * LINE) for side in range(2)]
                steps += self._four_products(left, right, LINE)
            steps += self._four_tiles(e.store_tile, into, channels, self.width)
        return steps

    def over_queries(self, part: Part, name: str, packed: ir.Value, into: ir.Value) -> list[Step]:
        e, steps, weights = self.e, [], part[f"{name} rows"]
        for rows in range(0, self.unit, 32):
            for channels in range(0, self.dim, 32):
                here = e.at(into, channels * 4)
                steps += self._four_tiles(e.load_tile, here, rows, self.dim * 4)
                right = [e.at(packed, (channels // 16 + side) * TILE) for side in range(2)]
                left = [e.at(weights, (rows + side * 16) * LINE) for side in range(2)]
                steps += self._four_products(left, right, LINE)
                steps += self._four_tiles(e.store_tile, here, rows, self.dim * 4)
        return steps

    def _four_products(self, left: list[ir.Value], right: list[ir.Value], stride: int) -> list[Step]:
        """Tiles 0 to 3 grow by the products of two tiles, whose rows are ``stride`` apart, and two packed ones."""
        e = self.e
        loads = [lambda tile=6 + side, at=at: e.load_tile(tile, at) for side, at in enumerate(right)]
        loads += [lambda tile=4 + side, at=at: e.load_tile(tile, at, stride) for side, at in enumerate(left)]
        return loads + [
            lambda row=row, column=column: e.multiply_tiles(row * 2 + column, 4 + row, 6 + column)
            for row in range(2)
            for column in range(2)
        ]

    def _four_tiles(
        self, move: Callable[[int, ir.Value, int], None], matrix: ir.Value, rows: int, stride: int
    ) -> list[Step]:
        """Load or store tiles 0 to 3: rows from ``rows`` on and the first 32 columns of a matrix."""
        places = [
            self.e.at(matrix, (rows + row * 16) * stride + column * LINE) for row in range(2) for column in range(2)
        ]
        return [lambda tile=tile, at=at: move(tile, at, stride) for tile, at in enumerate(places)]

    def keep(self, part: Part, name: str, row: int, found: Sequence[Sequence[ir.Value]], side: int = 0) -> None:
        e = self.e
        words = [[e.rounded_words(x) for x in sides] for sides in found]
        if name in part:
            for here, (low, high) in enumerate(zip(*words, strict=True), side):
                at = (row // 32 * 2 + here) * TILE + row % 32 // 2 * LINE
                e.write(e.pairs(low, high), e.at(part[name], at))
        if f"{name} rows" in part:
            for i, sides in enumerate(words):
                e.write(e.line(*sides), e.at(part[f"{name} rows"], (row + i) * LINE))

    def number(self, x: ir.Value) -> ir.Value:
        return self.e.nearest_halves(x)


class Vectors(Products):
    """float32 in AVX-512: four rows times up to four vectors of the result stay in registers.

    Values over keys come as (unit, D). Weights are floats (unit, queries), one copy of each kind for all products.
    """

    SIDES, PARTS, SIZE, FINE = 4, 1, 4, True
    _ROWS = 4
    _ROUND = 4  # terms of a sum that the loop takes at a time

    def open(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def sizes(self, over_keys: Sequence[str], over_queries: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys([*over_keys, *over_queries], self.unit * self.width)

    @property
    def packed(self) -> int:
        return self.dim * self.width

    def pack_columns(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        e = self.e
        with e.loop(0, self.dim // 16) as channels:
            rows = [e.read(FLOATS, e.at(line, e.multiply(channels, LINE)), 4) for line in lines]
            target = e.at(into, e.multiply(channels, 16 * self.width), e.multiply(side, LINE))
            for i, line in enumerate(e.transposed(rows)):
                e.write(line, e.at(target, i * self.width))

    def pack_rows(self, lines: Sequence[ir.Value], into: ir.Value, side: ir.Value) -> None:
        e = self.e
        with e.loop(0, self.dim // 16) as channels:
            target = e.at(into, e.multiply(side, 16 * self.dim * 4), e.multiply(channels, LINE))
            for i, line in enumerate(lines):
                e.write(e.read(FLOATS, e.at(line, e.multiply(channels, LINE)), 4), e.at(target, i * self.dim * 4))

    def scores(self, keys: ir.Value, packed: ir.Value, into: ir.Value) -> list[Step]:
        return [
            lambda: self._product(
                self.unit,
                self.dim,
                (keys, self.dim * 4, 4),
                (packed, self.width),
                (into, self.width),
                self.SIDES,
                fresh=True,
            )
        ]

    def over_keys(self, values: ir.Value, part: Part, name: str, into: ir.Value) -> list[Step]:
        return [
            lambda: self._product(
                self.dim, self.unit, (values, 4, self.dim * 4), (part[name], self.width), (into, self.width), self.SIDES
            )
        ]

    def over_queries(self, part: Part, name: str, packed: ir.Value, into: ir.Value) -> list[Step]:
        def multiply() -> None:
            for column in range(0, self.dim // 16, self.SIDES):
                vectors = min(self.SIDES, self.dim // 16 - column)
                self._product(
                    self.unit,
                    16 * self.SIDES,
                    (part[name], self.width, 4),
                    (self.e.at(packed, column * LINE), self.dim * 4),
                    (self.e.at(into, column * LINE), self.dim * 4),
                    vectors,
                )

        return [multiply]

    def _product(
        self,
        rows: int,
        depth: int,
        left: tuple[ir.Value, int, int],
        right: tuple[ir.Value, int],
        into: tuple[ir.Value, int],
        vectors: int,
        fresh: bool = False,
    ) -> None:
        """Add a product to ``vectors`` vectors of every row, or write it.

        Args:
            left: address, bytes to the next row, bytes to the next term of a sum.
            right, into: address, bytes to the next row.
        """
        e = self.e
        places = [(row, vector) for row in range(self._ROWS) for vector in range(vectors)]
        with e.loop(0, rows // self._ROWS) as block:
            factor = e.at(left[0], e.multiply(block, self._ROWS * left[1]))
            target = e.at(into[0], e.multiply(block, self._ROWS * into[1]))
            cells = [e.at(target, row * into[1] + vector * LINE) for row, vector in places]
            sums = [constant(FLOATS, 0.0) if fresh else e.read(FLOATS, cell, 4) for cell in cells]
            with e.loop_carrying(depth, self._ROUND, sums) as term:
                for i in range(self._ROUND):
                    here = e.add(term, i)
                    line = e.at(right[0], e.multiply(here, right[1]))
                    terms = [e.read(FLOATS, e.at(line, vector * LINE), 4) for vector in range(vectors)]
                    for row in range(self._ROWS):
                        at = e.at(factor, e.multiply(here, left[2]), row * left[1])
                        scalar = e.spread(e.read(FLOAT, at, 4))
                        for vector in range(vectors):
                            place = row * vectors + vector
                            sums[place] = e.multiply_add(scalar, terms[vector], sums[place])
            for cell, total in zip(cells, sums, strict=True):
                e.write(total, cell, 4)

    def keep(self, part: Part, name: str, row: int, found: Sequence[Sequence[ir.Value]], side: int = 0) -> None:
        for i, sides in enumerate(found):
            for here, x in enumerate(sides, side):
                self.e.write(x, self.e.at(part[name], (row + i) * self.width + here * LINE))

    def number(self, x: ir.Value) -> ir.Value:
        return x
