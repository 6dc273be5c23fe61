"""What the AMX kernels of block-sparse attention share: how they walk a plan, and how they multiply.

Scores are computed with keys along the rows and queries along the columns, so that everything per query is one vector,
keys are used as they lie in memory, and weights come out in the layout in which the next product takes them. 64 queries
run at once as two halves, half a step apart: while the vector units work on the scores of one half, the tile unit
multiplies for the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from llvmlite import ir

from genkit.kernels.amx.emitter import (
    FLOAT,
    FLOATS,
    HALVES,
    I16,
    I32,
    I64,
    LINE,
    POINTER,
    TILE,
    WORDS,
    Emitter,
    Step,
    constant,
    in_turn,
    weave,
)
from genkit.kernels.block_sparse.amx_visits import QUERIES

# Queries lie in memory as rows of one head; strides are bytes from a row to the next.
COMMON_ARGUMENTS = (
    ("q", POINTER),  # bfloat16 (queries, D)
    ("q_stride", I64),
    ("k", POINTER),  # bfloat16 (keys, D)
    ("starts", POINTER),  # int64 (blocks + 1,): where the visits of each query block begin
    ("units", POINTER),  # int32 (visits,): which unit of keys
    ("masks", POINTER),  # int32 (visits,): which mask, or -1
    ("bits", POINTER),  # int32 (masks, halves, unit): a bit for every query of a half that sees the key
    ("valid", POINTER),  # int64 (blocks,): valid queries of each block
    ("block", I64),  # queries of a block
    ("halves", I64),  # of a block, an even number
    ("first", I64),  # block to work on, and the end
    ("last", I64),
    ("scale", FLOAT),  # of the scores, times log2(e)
)

Part = dict[str, ir.Value]  # memory of a half, by name


class Walk(ABC):
    """Emits a kernel.

    Args:
        dim: channels of a head, a multiple of 32. unit: keys of a visit, 32 or 64.
    """

    NAME: str
    ARGUMENTS: tuple[tuple[str, ir.Type], ...]

    def __init__(self, dim: int, unit: int):
        self.dim, self.unit = dim, unit
        self.e = Emitter(self.NAME, self.ARGUMENTS)
        self.e.open_tiles()
        sizes = self.sizes()
        self.parts = [{name: self.e.scratch(size) for name, size in sizes.items()} for _ in range(2)]
        self.apart = sum(sizes.values())  # bytes from a thing of the first half to that of the second
        self.rows = self.e.scratch(QUERIES * dim * 2)
        self.scale = self.e.spread(self.e.arguments["scale"])

    # ---- what a kernel fills in -------------------------------------------------------------------------------------

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every thing that a half keeps, whole cache lines; ``queries``, ``scores`` and ``output`` are used
        here."""

    @abstractmethod
    def start(self, row: ir.Value, left: ir.Value) -> None:
        """Prepare a group: queries from ``row`` on, of which ``left`` are valid (perhaps more than 64)."""

    @abstractmethod
    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        """Products that a half's vector work needs."""

    @abstractmethod
    def prepare(self, part: Part) -> None:
        """Vector work that comes first and may branch."""

    @abstractmethod
    def between(self, part: Part) -> list[Step]:
        """Vector work that is mixed with products for the other half."""

    @abstractmethod
    def after(self, part: Part, visit: ir.Value) -> list[Step]:
        """Products of what the vector work found."""

    @abstractmethod
    def finish(self, row: ir.Value, left: ir.Value) -> None:
        """Write the results of a group."""

    # ---- the walk ---------------------------------------------------------------------------------------------------

    def module(self) -> ir.Module:
        """The whole kernel."""
        e = self.e
        with e.loop(e.arguments["first"], e.arguments["last"]) as block:
            valid = e.element(I64, "valid", block)
            begin, end = e.element(I64, "starts", block), e.element(I64, "starts", e.add(block, 1))
            first = e.multiply(block, e.arguments["block"])
            with e.loop(0, e.build.sdiv(e.add(valid, QUERIES - 1), e.number(QUERIES))) as group:
                done = e.multiply(group, QUERIES)
                left = e.build.sub(valid, done)
                self.start(e.add(first, done), left)
                with e.build.if_then(e.build.icmp_signed("<", begin, end)):
                    self._visit_all(begin, end, e.multiply(group, 2))
                self.finish(e.add(first, done), left)
        e.close_tiles()
        return e.finish()

    def _visit_all(self, begin: ir.Value, end: ir.Value, half: ir.Value) -> None:
        """All visits of a group; the second half follows half a step behind the first."""
        e, (ahead, behind) = self.e, self.parts
        last = e.add(end, -1)
        weave(self.before(ahead, begin))
        with e.loop(begin, end) as visit:
            self.adjust(ahead, visit, begin, half)
            self.prepare(ahead)
            # in the first step there are no weights yet: zeros times whatever is visited first;
            # in the last one the scores of the next visit are those of the last visit again, and not used
            previous, following = e.greater(e.add(visit, -1), begin), e.smaller(e.add(visit, 1), last)
            weave(self.between(ahead), in_turn(self.before(behind, visit), self.after(behind, previous)),
                  self._fetch("k", following))
            self.adjust(behind, visit, begin, e.add(half, 1))
            self.prepare(behind)
            weave(self.between(behind), in_turn(self.after(ahead, visit), self.before(ahead, following)),
                  self._fetch("v", following))
        weave(self.after(behind, last))

    def _fetch(self, name: str, visit: ir.Value) -> list[Step]:
        """Bring the unit of a visit nearer: lists may jump, which no processor foresees."""
        start = self.keyed(name, visit)
        return [lambda i=i: self.e.fetch(self.e.at(start, i * LINE)) for i in range(self.unit * self.dim * 2 // LINE)]

    def adjust(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Hide what the mask of a visit hides from one half of its queries."""
        e, build = self.e, self.e.build
        mask = e.element(I32, "masks", visit)
        with build.if_then(build.icmp_signed(">=", mask, e.number(0))):
            tile = e.add(e.multiply(mask, e.arguments["halves"]), half)
            source = e.at(e.arguments["bits"], e.multiply(tile, self.unit * 4))
            with e.loop(0, self.unit) as row:
                word = e.read(I32, e.at(source, e.multiply(row, 4)), 4)
                for side in range(2):
                    at = e.at(part["scores"], e.multiply(row, 2 * LINE), side * LINE)
                    bits = build.trunc(build.lshr(word, ir.Constant(I32, 16 * side)), I16)
                    seen = build.bitcast(bits, ir.VectorType(ir.IntType(1), 16))
                    e.write(build.select(seen, e.read(FLOATS, at), constant(FLOATS, float("-inf"))), at)

    # ---- queries in and out -----------------------------------------------------------------------------------------

    def lines(self, name: str, some: ir.Value, row: ir.Value, left: ir.Value) -> list[ir.Value]:
        """Addresses of 16 rows of an argument: those of the queries 16 * some and following of a group. The last valid
        row stands for rows that are not valid."""
        e, last = self.e, self.e.add(left, -1)
        return [e.at(e.arguments[name], e.multiply(e.add(row, e.smaller(e.add(e.multiply(some, 16), i), last)),
                                                   e.arguments[f"{name}_stride"])) for i in range(16)]

    def pack_columns(self, lines: list[ir.Value], into: ir.Value) -> None:
        """Write 16 rows as the right factor of products over channels: a tile for every 32 of them, two apart."""
        e = self.e
        with e.loop(0, self.dim // 32) as channels:
            words = [e.read(WORDS, e.at(line, e.multiply(channels, LINE)), 2) for line in lines]
            target = e.at(into, e.multiply(channels, 2 * TILE))
            for i, line in enumerate(e.transposed(words)):
                e.write(line, e.at(target, i * LINE))

    def places(self, some: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of the 16 queries with this number in a group: offset of their half's things, and which side of it."""
        build = self.e.build
        return self.e.multiply(build.lshr(some, self.e.number(1)), self.apart), build.and_(some, self.e.number(1))

    def clear(self, thing: ir.Value, size: int) -> None:
        """Write zeros."""
        with self.e.loop(0, size // LINE) as line:
            self.e.write(constant(FLOATS, 0.0), self.e.at(thing, self.e.multiply(line, LINE)))

    def turn_output(self, some: ir.Value, factor: ir.Value) -> None:
        """Write the outputs (channels, queries) of 16 queries, times a factor of each, to :attr:`rows` as bfloat16."""
        e, build = self.e, self.e.build
        half, side = self.places(some)
        with e.loop(0, self.dim // 16) as block:
            source = e.at(self.parts[0]["output"], half, e.multiply(block, 16 * 2 * LINE), e.multiply(side, LINE))
            target = e.at(self.rows, e.multiply(some, 16 * self.dim * 2), e.multiply(block, 32))
            columns = [build.fmul(factor, e.read(FLOATS, e.at(source, i * 2 * LINE))) for i in range(16)]
            for i, line in enumerate(e.transposed(columns)):
                e.write(self._nearest(line), e.at(target, i * self.dim * 2), 32)

    def copy_row(self, query: ir.Value, name: str, row: ir.Value) -> None:
        """Copy a query's line of :attr:`rows` to a row of an argument."""
        e = self.e
        source = e.at(self.rows, e.multiply(query, self.dim * 2))
        target = e.at(e.arguments[name], e.multiply(e.add(row, query), e.arguments[f"{name}_stride"]))
        with e.loop(0, self.dim // 32) as line:
            at = e.multiply(line, LINE)
            e.write(e.read(WORDS, e.at(source, at)), e.at(target, at), 2)

    def _nearest(self, x: ir.Value) -> ir.Value:
        """Floats as bfloat16, ties to even."""
        build = self.e.build
        word = build.bitcast(x, WORDS)
        odd = build.and_(build.lshr(word, constant(WORDS, 16)), constant(WORDS, 1))
        word = build.add(build.add(word, constant(WORDS, 0x7FFF)), odd)
        return build.trunc(build.lshr(word, constant(WORDS, 16)), HALVES)

    # ---- products: tiles 0 to 3 are two times two of the result, 4 and 5 the left factor, 6 and 7 the right one ------

    def keyed(self, name: str, visit: ir.Value, size: int = 2) -> ir.Value:
        """Where the unit of a visit lies in an argument of D numbers per key, of ``size`` bytes each."""
        place = self.e.element(I32, "units", visit)
        return self.e.at(self.e.arguments[name], self.e.multiply(place, self.unit * self.dim * size))

    def scores(self, keys: ir.Value, packed: ir.Value, into: ir.Value) -> list[Step]:
        """Products over channels of the keys (unit, D) and packed queries: (unit, 32) floats."""
        e, steps = self.e, []
        for rows in range(0, self.unit, 32):
            steps += [lambda tile=tile: e.clear_tile(tile) for tile in range(4)]
            for channels in range(self.dim // 32):
                right = [e.at(packed, (channels * 2 + side) * TILE) for side in range(2)]
                left = [e.at(keys, (rows + side * 16) * self.dim * 2 + channels * LINE) for side in range(2)]
                steps += self._four_products(left, right, self.dim * 2)
            steps += self._four_tiles(e.store_tile, into, rows, 2 * LINE)
        return steps

    def over_keys(self, columns: ir.Value, weights: ir.Value, into: ir.Value) -> list[Step]:
        """Add to ``into`` (D, 32) floats the products over keys of ``columns`` (unit / 32, D, 32) and weights, two keys
        in a word."""
        e, steps = self.e, []
        for channels in range(0, self.dim, 32):
            steps += self._four_tiles(e.load_tile, into, channels, 2 * LINE)
            for keys in range(self.unit // 32):
                right = [e.at(weights, (keys * 2 + side) * TILE) for side in range(2)]
                left = [e.at(columns, (keys * self.dim + channels + side * 16) * LINE) for side in range(2)]
                steps += self._four_products(left, right, LINE)
            steps += self._four_tiles(e.store_tile, into, channels, 2 * LINE)
        return steps

    def over_queries(self, weights: ir.Value, pairs: ir.Value, into: ir.Value) -> list[Step]:
        """Add to ``into`` (unit, D) floats the products over the 32 queries of a half of ``weights`` (unit, 32)
        bfloat16 and rows packed as :meth:`pack_pairs` does."""
        e, steps = self.e, []
        for rows in range(0, self.unit, 32):
            for channels in range(0, self.dim, 32):
                here = e.at(into, channels * 4)
                steps += self._four_tiles(e.load_tile, here, rows, self.dim * 4)
                right = [e.at(pairs, (channels // 16 + side) * TILE) for side in range(2)]
                left = [e.at(weights, (rows + side * 16) * LINE) for side in range(2)]
                steps += self._four_products(left, right, LINE)
                steps += self._four_tiles(e.store_tile, here, rows, self.dim * 4)
        return steps

    def _four_products(self, left: list[ir.Value], right: list[ir.Value], stride: int) -> list[Step]:
        """Tiles 0 to 3 grow by the products of two tiles, whose rows are ``stride`` apart, and two packed ones."""
        e = self.e
        loads = [lambda tile=6 + side, at=at: e.load_tile(tile, at) for side, at in enumerate(right)]
        loads += [lambda tile=4 + side, at=at: e.load_tile(tile, at, stride) for side, at in enumerate(left)]
        return loads + [lambda row=row, column=column: e.multiply_tiles(row * 2 + column, 4 + row, 6 + column)
                        for row in range(2) for column in range(2)]

    def _four_tiles(self, move: Callable[[int, ir.Value, int], None], matrix: ir.Value, rows: int,
                    stride: int) -> list[Step]:
        """Load or store tiles 0 to 3: rows from ``rows`` on and the first 32 columns of a matrix."""
        places = [self.e.at(matrix, (rows + row * 16) * stride + column * LINE)
                  for row in range(2) for column in range(2)]
        return [lambda tile=tile, at=at: move(tile, at, stride) for tile, at in enumerate(places)]
