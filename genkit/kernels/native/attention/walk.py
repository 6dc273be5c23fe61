"""How the native kernels of block-sparse attention walk a plan.

64 queries run at once. With tiles they are two parts, half a step apart: while the vector units work on the scores of
one part, the tile unit multiplies for the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from llvmlite import ir

from genkit.kernels.native.attention.products import Part, Products
from genkit.kernels.native.attention.visits import HALF, QUERIES
from genkit.kernels.native.emitter import (
    FLOAT,
    FLOATS,
    I16,
    I32,
    I64,
    LINE,
    POINTER,
    WORDS,
    Emitter,
    Step,
    constant,
    in_turn,
    weave,
)

# Queries are rows of one head; strides are bytes from a row to the next. "Numbers" are bfloat16 or float.
COMMON_ARGUMENTS = (
    ("q", POINTER),  # numbers (queries, D)
    ("q_stride", I64),
    ("k", POINTER),  # numbers (keys, D)
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


class Walk(ABC):
    """Emits a kernel.

    Args:
        dim: channels of a head, a multiple of 16 with vectors and of 32 with tiles. unit: keys of a visit.
        products: how to multiply.
    """

    NAME: str
    ARGUMENTS: tuple[tuple[str, ir.Type], ...]

    def __init__(self, dim: int, unit: int, products: type[Products]):
        self.dim, self.unit = dim, unit
        self.e = Emitter(self.NAME, self.ARGUMENTS)
        self.products = products(self.e, dim, unit)
        self.sides, self.width = self.products.SIDES, self.products.width
        self.products.open()
        self.weights = self.products.sizes(*self.kept())
        sizes = {"scores": unit * self.width, "output": dim * self.width, **self.sizes(), **self.weights}
        self.parts = [{name: self.e.scratch(size) for name, size in sizes.items()} for _ in range(self.products.PARTS)]
        self.apart = sum(sizes.values())  # bytes from a thing of one part to that of the next
        self.rows = self.e.scratch(QUERIES * dim * self.result_size)
        self.scale = self.e.spread(self.e.arguments["scale"])

    # ---- what a kernel fills in -------------------------------------------------------------------------------------

    @abstractmethod
    def kept(self) -> tuple[list[str], list[str]]:
        """Names of the weights that products over keys and over queries will want."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of everything that a part keeps besides weights, scores and output, in whole cache lines."""

    @abstractmethod
    def start(self, row: ir.Value, left: ir.Value) -> None:
        """Prepare a group: queries from ``row`` on, of which ``left`` are valid (perhaps more than 64)."""

    @abstractmethod
    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        """Products that a part's vector work needs."""

    @abstractmethod
    def prepare(self, part: Part) -> None:
        """Vector work that comes first and may branch."""

    @abstractmethod
    def between(self, part: Part) -> list[Step]:
        """Vector work that may be mixed with products for another part."""

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
                for part in self.parts:
                    self.clear(part["output"], self.dim * self.width)
                for name, size in self.weights.items():
                    self.clear(self.parts[-1][name], size)
                self.start(e.add(first, done), left)
                with e.build.if_then(e.build.icmp_signed("<", begin, end)):
                    visit_all = self._visit_two if len(self.parts) == 2 else self._visit_one
                    visit_all(begin, end, e.multiply(group, QUERIES // HALF))
                self.finish(e.add(first, done), left)
        self.products.close()
        return e.finish()

    def _visit_one(self, begin: ir.Value, end: ir.Value, half: ir.Value) -> None:
        """All visits of a group that is one part."""
        [part] = self.parts
        with self.e.loop(begin, end) as visit:
            weave(self.before(part, visit))
            self.adjust(part, visit, begin, half)
            self.prepare(part)
            weave(self.between(part))
            weave(self.after(part, visit))

    def _visit_two(self, begin: ir.Value, end: ir.Value, half: ir.Value) -> None:
        """All visits of a group in two parts; the second follows half a step behind the first."""
        e, (ahead, behind) = self.e, self.parts
        last = e.add(end, -1)
        weave(self.before(ahead, begin))
        with e.loop(begin, end) as visit:
            self.adjust(ahead, visit, begin, half)
            self.prepare(ahead)
            # in the first step there are no weights yet: zeros times whatever is visited first;
            # in the last one the scores of the next visit are those of the last visit again, and not used
            previous, following = e.greater(e.add(visit, -1), begin), e.smaller(e.add(visit, 1), last)
            weave(
                self.between(ahead),
                in_turn(self.before(behind, visit), self.after(behind, previous)),
                self._fetch("k", following),
            )
            self.adjust(behind, visit, begin, e.add(half, 1))
            self.prepare(behind)
            weave(
                self.between(behind),
                in_turn(self.after(ahead, visit), self.before(ahead, following)),
                self._fetch("v", following),
            )
        weave(self.after(behind, last))

    def _fetch(self, name: str, visit: ir.Value) -> list[Step]:
        """Bring the unit of a visit nearer: lists may jump, which no processor foresees."""
        start, size = self.keyed(name, visit), self.unit * self.dim * self.products.SIZE
        return [lambda i=i: self.e.fetch(self.e.at(start, i * LINE)) for i in range(size // LINE)]

    def adjust(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Hide what the mask of a visit hides from a part, whose first half of 32 queries is given."""
        e, build = self.e, self.e.build
        mask = e.element(I32, "masks", visit)
        with build.if_then(build.icmp_signed(">=", mask, e.number(0))):
            tile = e.add(e.multiply(mask, e.arguments["halves"]), half)
            source = e.at(e.arguments["bits"], e.multiply(tile, self.unit * 4))
            with e.loop(0, self.unit) as row:
                for side in range(self.sides):
                    word = e.read(I32, e.at(source, e.multiply(row, 4), side // 2 * self.unit * 4), 4)
                    at = e.at(part["scores"], e.multiply(row, self.width), side * LINE)
                    bits = build.trunc(build.lshr(word, ir.Constant(I32, side % 2 * 16)), I16)
                    seen = build.bitcast(bits, ir.VectorType(ir.IntType(1), 16))
                    e.write(build.select(seen, e.read(FLOATS, at), constant(FLOATS, float("-inf"))), at)

    def add_bias(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Add values of the argument ``bias``, float (visits of the one block * unit, halves * 32)."""
        e = self.e
        key = e.multiply(e.build.sub(visit, begin), self.unit)
        part["bias"] = e.at(self.biased(e.arguments["bias"], key, 0), e.multiply(half, 2 * LINE))
        with e.loop(0, self.unit) as row:
            for side in range(self.sides):
                at = e.at(part["scores"], e.multiply(row, self.width), side * LINE)
                value = e.read(FLOATS, self.biased(part["bias"], row, side), 4)
                e.write(e.build.fadd(e.read(FLOATS, at), value), at)

    def biased(self, start: ir.Value, row: int | ir.Value, side: int) -> ir.Value:
        """Where the bias is of a key, counted from ``start``, and the 16 queries of a side."""
        return self.e.at(start, self.e.multiply(row, self.e.arguments["halves"], 2 * LINE), side * LINE)

    def keyed(self, name: str, visit: ir.Value, size: int | None = None) -> ir.Value:
        """Where the unit of a visit lies in an argument of D numbers per key, of ``size`` bytes each if given."""
        place = self.e.element(I32, "units", visit)
        return self.e.at(
            self.e.arguments[name], self.e.multiply(place, self.unit * self.dim * (size or self.products.SIZE))
        )

    # ---- queries in and out, 16 at a time ---------------------------------------------------------------------------

    @property
    def result_size(self) -> int:
        """Bytes of a result's element."""
        return self.products.SIZE

    def result(self, x: ir.Value) -> ir.Value:
        """Floats as elements of a result."""
        return self.products.number(x)

    def row_of(self, row: ir.Value, query: ir.Value) -> ir.Value:
        """Row of the arguments that holds a query of the group that begins at ``row``."""
        return self.e.add(row, query)

    def rows_of(self, some: ir.Value, row: ir.Value, left: ir.Value) -> list[ir.Value]:
        """Rows of the queries 16 * some and following of a group. The last valid query stands for those that are not
        valid."""
        e, last = self.e, self.e.add(left, -1)
        return [self.row_of(row, e.smaller(e.add(e.multiply(some, 16), i), last)) for i in range(16)]

    def lines(self, name: str, rows: Sequence[ir.Value]) -> list[ir.Value]:
        """Addresses of rows of an argument."""
        e = self.e
        return [e.at(e.arguments[name], e.multiply(row, e.arguments[f"{name}_stride"])) for row in rows]

    def places(self, some: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of the 16 queries with this number in a group: offset of their part's things, and which side of it."""
        build, sides = self.e.build, self.e.number(self.sides)
        return self.e.multiply(build.udiv(some, sides), self.apart), build.urem(some, sides)

    def per_query(self, name: str, some: ir.Value) -> ir.Value:
        """Address of a float for each of 16 queries."""
        offset, side = self.places(some)
        return self.e.at(self.parts[0][name], offset, self.e.multiply(side, LINE))

    def clear(self, thing: ir.Value, size: int) -> None:
        """Write zeros."""
        with self.e.loop(0, size // LINE) as line:
            self.e.write(constant(FLOATS, 0.0), self.e.at(thing, self.e.multiply(line, LINE)))

    def turn_output(self, some: ir.Value, factor: ir.Value) -> None:
        """Write the outputs (D, queries) of 16 queries, times a factor of each, to :attr:`rows` as a result."""
        e, size, (offset, side) = self.e, self.result_size, self.places(some)
        with e.loop(0, self.dim // 16) as block:
            source = e.at(self.parts[0]["output"], offset, e.multiply(block, 16 * self.width), e.multiply(side, LINE))
            target = e.at(self.rows, e.multiply(some, 16 * self.dim * size), e.multiply(block, 16 * size))
            columns = [e.build.fmul(factor, e.read(FLOATS, e.at(source, i * self.width))) for i in range(16)]
            for i, line in enumerate(e.transposed(columns)):
                e.write(self.result(line), e.at(target, i * self.dim * size), 16 * size)

    def copy_row(self, query: ir.Value, name: str, row: ir.Value) -> None:
        """Copy a query's line of :attr:`rows` to a row of an argument."""
        e, size = self.e, self.dim * self.result_size
        source = e.at(self.rows, e.multiply(query, size))
        [target] = self.lines(name, [self.row_of(row, query)])
        with e.loop(0, size // LINE) as line:
            at = e.multiply(line, LINE)
            e.write(e.read(WORDS, e.at(source, at)), e.at(target, at), self.result_size)
