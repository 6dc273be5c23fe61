"""The native kernels for queries that lie anywhere: a table says which rows of a head are the queries of a group, and
what these have found so far is read before the group and written after it.

So groups may take one key block after the other, each with the queries that chose it, and nothing is gathered or merged
in memory. Only one thread may work on a query.
"""

from __future__ import annotations

from llvmlite import ir

from genkit.kernels.native.attention.backward import Backward
from genkit.kernels.native.attention.forward import Forward
from genkit.kernels.native.attention.walk import Walk
from genkit.kernels.native.emitter import FLOAT, FLOATS, I32, LINE, POINTER, constant

_ROWS = ("rows", POINTER)  # int32 (blocks * 64,): the row of each query


class _Anywhere(Walk):
    """Reads and writes queries through the table. Results are floats, without what is multiplied in the end."""

    RESULT: str  # argument: float (queries, D), zeros at first

    @property
    def result_size(self) -> int:
        return LINE // 16

    def result(self, x: ir.Value) -> ir.Value:
        return x

    def row_of(self, row: ir.Value, query: ir.Value) -> ir.Value:
        return self.e.element(I32, "rows", self.e.add(row, query))

    def share(self, some: ir.Value) -> ir.Value:
        return constant(FLOATS, 1.0)

    def values(self, name: str, rows: list[ir.Value]) -> ir.Value:
        e, vector = self.e, ir.Constant(FLOATS, ir.Undefined)
        for i, row in enumerate(rows):
            value = e.read(FLOAT, e.at(e.arguments[name], e.multiply(row, 4)), 4)
            vector = e.build.insert_element(vector, value, ir.Constant(I32, i))
        return vector

    def begin(self, some: ir.Value, rows: list[ir.Value]) -> None:
        """Read what 16 queries have found."""
        e, (offset, side) = self.e, self.places(some)
        lines = self.lines(self.RESULT, rows)
        with e.loop(0, self.dim // 16) as block:
            columns = e.transposed([e.read(FLOATS, e.at(line, e.multiply(block, LINE)), 4) for line in lines])
            target = e.at(self.parts[0]["output"], offset, e.multiply(block, 16 * self.width), e.multiply(side, LINE))
            for i, column in enumerate(columns):
                e.write(column, e.at(target, i * self.width))


class ForwardAnywhere(_Anywhere, Forward):
    """Emits the forward kernel. ``top`` starts from ``LOWEST``, ``total`` from 0; outputs still have to be divided by
    ``total``."""

    NAME, RESULT = "forward anywhere", "out"
    ARGUMENTS = (*Forward.ARGUMENTS, _ROWS)

    def begin(self, some: ir.Value, rows: list[ir.Value]) -> None:
        super().begin(some, rows)
        for name in ("top", "total"):
            self.e.write(self.values(name, rows), self.per_query(name, some))


class BackwardAnywhere(_Anywhere, Backward):
    """Emits the backward kernel. The gradients of queries still have to be multiplied by ``factor``."""

    NAME, RESULT = "backward anywhere", "d_q"
    ARGUMENTS = (*Backward.ARGUMENTS, _ROWS)
