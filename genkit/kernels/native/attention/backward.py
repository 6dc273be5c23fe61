"""Native block-sparse attention: the backward kernel, all three gradients in one walk.

Weights come from the scores and the log-sum-exp of the forward pass; dS = P * (dO V^T - delta) as in FlashAttention-2.
The gradients of keys and values are sums in memory that one call at a time adds to, so their order is fixed.
"""

from __future__ import annotations

from itertools import product

from llvmlite import ir

from genkit.kernels.native.attention.products import Part
from genkit.kernels.native.attention.visits import QUERIES
from genkit.kernels.native.attention.walk import COMMON_ARGUMENTS, Walk
from genkit.kernels.native.emitter import FLOAT, FLOATS, I64, LINE, POINTER, Step, constant, in_turn


class Backward(Walk):
    """Emits the backward kernel."""

    NAME = "backward"
    ARGUMENTS = (
        *COMMON_ARGUMENTS,
        ("v", POINTER),  # numbers (keys, D)
        ("turned", POINTER),  # the keys again, as the products want values over keys
        ("d_out", POINTER),  # numbers (queries, D)
        ("d_out_stride", I64),
        ("lse", POINTER),  # float (queries + 64,), in powers of two; infinity for a query that sees nothing
        ("delta", POINTER),  # float (queries + 64,): sum of dO * O, less the gradient of lse
        ("d_q", POINTER),  # numbers (queries, D)
        ("d_q_stride", I64),
        ("d_k", POINTER),  # float (keys, D), to be added to; without the scale
        ("d_v", POINTER),
        ("factor", FLOAT),  # scale of the scores
    )

    def kept(self) -> tuple[list[str], list[str]]:
        return ["changes"], ["weights", "changes"]

    def sizes(self) -> dict[str, int]:
        packed = dict.fromkeys(("queries", "query rows", "grads", "grad rows"), self.products.packed)
        return {**packed, "slopes": self.unit * self.width, "lse": self.width, "delta": self.width}

    def start(self, row: ir.Value, left: ir.Value) -> None:
        e, build, first = self.e, self.e.build, self.parts[0]
        with e.loop(0, QUERIES // 16) as some:
            offset, side = self.places(some)
            rows = self.rows_of(some, row, left)
            for name, packed in (("q", ("queries", "query rows")), ("d_out", ("grads", "grad rows"))):
                lines = self.lines(name, rows)
                self.products.pack_columns(lines, e.at(first[packed[0]], offset), side)
                self.products.pack_rows(lines, e.at(first[packed[1]], offset), side)
            valid = e.lanes_below(build.sub(left, e.multiply(some, 16)))
            for name, otherwise in (("lse", float("inf")), ("delta", 0.0)):
                values = self.values(name, rows)
                e.write(build.select(valid, values, constant(FLOATS, otherwise)), self.per_query(name, some))
            self.begin(some, rows)

    def values(self, name: str, rows: list[ir.Value]) -> ir.Value:
        """An argument's float for each of 16 queries, anything for those that are not valid."""
        return self.e.read(FLOATS, self.e.at(self.e.arguments[name], self.e.multiply(rows[0], 4)), 4)

    def begin(self, some: ir.Value, rows: list[ir.Value]) -> None:
        """Nothing: the gradients of 16 queries start from zero."""

    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        return in_turn(
            self.products.scores(self.keyed("k", visit), part["queries"], part["scores"]),
            self.products.scores(self.keyed("v", visit), part["grads"], part["slopes"]),
        )

    def after(self, part: Part, visit: ir.Value) -> list[Step]:
        products = self.products
        return in_turn(
            products.over_queries(part, "weights", part["grad rows"], self.keyed("d_v", visit, 4)),
            products.over_queries(part, "changes", part["query rows"], self.keyed("d_k", visit, 4)),
            products.over_keys(self.keyed("turned", visit), part, "changes", part["output"]),
        )

    def prepare(self, part: Part) -> None:
        """Nothing: the log-sum-exp is known."""

    def between(self, part: Part) -> list[Step]:
        """Scores and slopes to weights and changes of the scores."""
        e, build, every = self.e, self.e.build, range(self.sides)
        state: dict[str, list[ir.Value]] = {}

        def begin() -> None:
            state["lower"] = [build.fneg(e.read(FLOATS, e.at(part["lse"], side * LINE))) for side in every]
            state["delta"] = [e.read(FLOATS, e.at(part["delta"], side * LINE)) for side in every]

        def pair(row: int) -> None:
            weights: list[list[ir.Value]] = [[], []]
            changes: list[list[ir.Value]] = [[], []]
            for i, side in product(range(2), every):
                at = (row + i) * self.width + side * LINE
                score = e.multiply_add(e.read(FLOATS, e.at(part["scores"], at)), self.scale, state["lower"][side])
                weight = e.exp2(score, self.products.FINE)
                slope = build.fsub(e.read(FLOATS, e.at(part["slopes"], at)), state["delta"][side])
                change = build.fmul(weight, slope)
                self.tell(part, row + i, side, change)
                weights[i].append(weight)
                changes[i].append(change)
            self.products.keep(part, "weights", row, weights)
            self.products.keep(part, "changes", row, changes)

        return [begin, *(lambda row=row: pair(row) for row in range(0, self.unit, 2))]

    def tell(self, part: Part, row: int, side: int, change: ir.Value) -> None:
        """Nothing: how the scores change is not asked for."""

    def finish(self, row: ir.Value, left: ir.Value) -> None:
        e = self.e
        with e.loop(0, QUERIES // 16) as some:
            self.turn_output(some, self.share(some))
        with e.loop(0, e.smaller(left, QUERIES)) as i:
            self.copy_row(i, "d_q", row)

    def share(self, some: ir.Value) -> ir.Value:
        """What the gradients of 16 queries are multiplied by in the end."""
        return self.e.spread(self.e.arguments["factor"])


class BackwardWithBias(Backward):
    """Emits the backward kernel for scores with a bias. It leaves the gradient of the biased scores in its place."""

    NAME = "backward with bias"
    ARGUMENTS = (*Backward.ARGUMENTS, ("bias", POINTER))  # in units of the scores

    def adjust(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Add the bias, then hide."""
        self.add_bias(part, visit, begin, half)
        super().adjust(part, visit, begin, half)

    def tell(self, part: Part, row: int, side: int, change: ir.Value) -> None:
        self.e.write(change, self.biased(part["bias"], row, side), 4)
