"""Native block-sparse attention: the forward kernel.

Running maxima and sums follow FlashAttention; as in FlashAttention-4 the output is rescaled only when a maximum has
grown by more than a factor of 2^8, which happens in the first steps and seldom later.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir

from genkit.kernels.native.attention.products import Part
from genkit.kernels.native.attention.visits import LOWEST, QUERIES
from genkit.kernels.native.attention.walk import COMMON_ARGUMENTS, Walk
from genkit.kernels.native.emitter import FLOAT, FLOATS, I16, I64, LINE, POINTER, Step, constant

_SLACK = 8.0  # powers of two by which weights may exceed 1 before the output is rescaled


class Forward(Walk):
    """Emits the forward kernel."""

    NAME = "forward"
    ARGUMENTS = (
        *COMMON_ARGUMENTS,
        ("v", POINTER),  # numbers, as the products want values over keys
        ("bias", POINTER),  # in units of the scores, or null; see Walk.add_bias
        ("out", POINTER),  # numbers (queries, D)
        ("out_stride", I64),
        ("top", POINTER),  # float (queries,): running maximum of the scores, in powers of two
        ("total", POINTER),  # float (queries,): sum of 2^(score - top)
    )

    def kept(self) -> tuple[list[str], list[str]]:
        return ["weights"], []

    def sizes(self) -> dict[str, int]:
        return {"queries": self.products.packed, "top": self.width, "total": self.width}

    def start(self, row: ir.Value, left: ir.Value) -> None:
        e = self.e
        with e.loop(0, QUERIES // 16) as some:
            offset, side = self.places(some)
            rows = self.rows_of(some, row, left)
            self.products.pack_columns(self.lines("q", rows), e.at(self.parts[0]["queries"], offset), side)
            self.begin(some, rows)

    def begin(self, some: ir.Value, rows: list[ir.Value]) -> None:
        """Say that 16 queries have seen nothing yet."""
        self.e.write(constant(FLOATS, LOWEST), self.per_query("top", some))
        self.e.write(constant(FLOATS, 0.0), self.per_query("total", some))

    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        return self.products.scores(self.keyed("k", visit), part["queries"], part["scores"])

    def after(self, part: Part, visit: ir.Value) -> list[Step]:
        return self.products.over_keys(self.keyed("v", visit), part, "weights", part["output"])

    def adjust(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Add the bias, then hide."""
        build, bias = self.e.build, self.e.arguments["bias"]
        with build.if_then(build.icmp_unsigned("!=", bias, ir.Constant(POINTER, None))):
            self.add_bias(part, visit, begin, half)
        super().adjust(part, visit, begin, half)

    def prepare(self, part: Part) -> None:
        """Bring the running maxima up to these scores, and output and sums with them, where that is due."""
        e, build = self.e, self.e.build
        old = [e.read(FLOATS, e.at(part["top"], side * LINE)) for side in range(self.sides)]
        new = [e.larger(build.fmul(self._best(part, side), self.scale), old[side]) for side in range(self.sides)]
        grown = [
            build.fcmp_ordered(">", after, build.fadd(before, constant(FLOATS, _SLACK)))
            for before, after in zip(old, new, strict=True)
        ]
        due = build.icmp_unsigned("!=", build.bitcast(reduce(build.or_, grown), I16), ir.Constant(I16, 0))
        with build.if_then(due):
            for side in range(self.sides):
                shrink = e.exp2(build.fsub(old[side], new[side]), self.products.FINE)
                e.write(new[side], e.at(part["top"], side * LINE))
                total = e.at(part["total"], side * LINE)
                e.write(build.fmul(shrink, e.read(FLOATS, total)), total)
                with e.loop(0, self.dim) as row:
                    at = e.at(part["output"], e.multiply(row, self.width), side * LINE)
                    e.write(build.fmul(shrink, e.read(FLOATS, at)), at)

    def _best(self, part: Part, side: int) -> ir.Value:
        """The largest score of each query of a side; four at a time, for one alone would wait for itself."""
        e = self.e
        rows = [e.read(FLOATS, e.at(part["scores"], row * self.width + side * LINE)) for row in range(4)]
        for row in range(4, self.unit):
            score = e.read(FLOATS, e.at(part["scores"], row * self.width + side * LINE))
            rows[row % 4] = e.larger(rows[row % 4], score)
        return e.larger(e.larger(rows[0], rows[1]), e.larger(rows[2], rows[3]))

    def between(self, part: Part) -> list[Step]:
        """Scores to weights and their sums."""
        return [step for side in range(self.sides) for step in self._exponentials(part, side)]

    def _exponentials(self, part: Part, side: int) -> list[Step]:
        e, build = self.e, self.e.build
        state: dict[str, ir.Value] = {}
        total = e.at(part["total"], side * LINE)

        def begin() -> None:
            state["lower"] = build.fneg(e.read(FLOATS, e.at(part["top"], side * LINE)))

        def pair(row: int) -> None:
            scores = (e.read(FLOATS, e.at(part["scores"], (row + i) * self.width + side * LINE)) for i in range(2))
            low, high = (
                e.exp2(e.multiply_add(score, self.scale, state["lower"]), self.products.FINE) for score in scores
            )
            for name, weight in (("even", low), ("odd", high)):  # two sums: one alone would wait for itself
                state[name] = build.fadd(state[name], weight) if name in state else weight
            self.products.keep(part, "weights", row, [[low], [high]], side)

        def end() -> None:
            e.write(build.fadd(e.read(FLOATS, total), build.fadd(state["even"], state["odd"])), total)

        return [begin, *(lambda row=row: pair(row) for row in range(0, self.unit, 2)), end]

    def finish(self, row: ir.Value, left: ir.Value) -> None:
        e = self.e
        with e.loop(0, QUERIES // 16) as some:
            self.turn_output(some, self.share(some))
        with e.loop(0, e.smaller(left, QUERIES)) as i:
            self.copy_row(i, "out", row)
            some, lane = e.build.udiv(i, e.number(16)), e.multiply(e.build.urem(i, e.number(16)), 4)
            for name in ("top", "total"):
                found = e.read(FLOAT, e.at(self.per_query(name, some), lane), 4)
                e.write(found, e.at(e.arguments[name], e.multiply(self.row_of(row, i), 4)), 4)

    def share(self, some: ir.Value) -> ir.Value:
        """What the outputs of 16 queries are multiplied by in the end."""
        build, zero = self.e.build, constant(FLOATS, 0.0)
        total = self.e.read(FLOATS, self.per_query("total", some))
        seen = build.fcmp_unordered("!=", total, zero)
        return build.select(seen, build.fdiv(constant(FLOATS, 1.0), total), zero)
