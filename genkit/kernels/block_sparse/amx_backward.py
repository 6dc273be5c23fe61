"""Block-sparse attention with AMX tiles: the backward kernel, all three gradients in one walk.

Weights come from the scores and the log-sum-exp of the forward pass; dS = P * (dO V^T - delta) as in FlashAttention-2.
The gradients of keys and values are sums in memory that one call at a time adds to, so their order is fixed.
"""

from __future__ import annotations

from llvmlite import ir

from genkit.kernels.amx.emitter import FLOAT, FLOATS, HALVES, I64, LINE, POINTER, TILE, WORDS, Step, constant, in_turn
from genkit.kernels.block_sparse.amx_visits import QUERIES
from genkit.kernels.block_sparse.amx_walk import COMMON_ARGUMENTS, Part, Walk


class Backward(Walk):
    """Emits the backward kernel."""

    NAME = "block_sparse_backward"
    ARGUMENTS = (
        *COMMON_ARGUMENTS,
        ("v", POINTER),  # bfloat16 (keys, D)
        ("turned", POINTER),  # bfloat16 (keys / 32, D, 32), the keys again
        ("d_out", POINTER),  # bfloat16 (queries, D)
        ("d_out_stride", I64),
        ("lse", POINTER),  # float (queries + 64,), in powers of two; infinity for a query that sees nothing
        ("delta", POINTER),  # float (queries + 64,): sum of dO * O, less the gradient of lse
        ("d_q", POINTER),  # bfloat16 (queries, D)
        ("d_q_stride", I64),
        ("d_k", POINTER),  # float (keys, D), to be added to; without the scale
        ("d_v", POINTER),
        ("factor", FLOAT),  # scale of the scores
    )

    def sizes(self) -> dict[str, int]:
        rows, unit = self.dim * LINE, self.unit * LINE
        return {"queries": rows, "query pairs": rows, "grads": rows, "grad pairs": rows, "scores": 2 * unit,
                "slopes": 2 * unit, "weights": unit, "changes": unit, "change pairs": unit, "output": 2 * rows,
                "lse": 2 * LINE, "delta": 2 * LINE}

    def start(self, row: ir.Value, left: ir.Value) -> None:
        e, build, first = self.e, self.e.build, self.parts[0]
        with e.loop(0, QUERIES // 16) as some:
            half, side = self.places(some)
            for name, packed in (("q", "query"), ("d_out", "grad")):
                lines = self.lines(name, some, row, left)
                columns = first["queries" if packed == "query" else "grads"]
                self.pack_columns(lines, e.at(columns, half, e.multiply(side, TILE)))
                self.pack_pairs(lines, e.at(first[f"{packed} pairs"], half, e.multiply(side, TILE // 2)))
            begin = e.multiply(some, 16)
            valid = e.lanes_below(build.sub(left, begin))
            for name, otherwise in (("lse", float("inf")), ("delta", 0.0)):
                found = e.read(FLOATS, e.at(e.arguments[name], e.multiply(e.add(row, begin), 4)), 4)
                e.write(build.select(valid, found, constant(FLOATS, otherwise)),
                        e.at(first[name], half, e.multiply(side, LINE)))
        for part in self.parts:
            self.clear(part["output"], self.dim * 2 * LINE)
        for name in ("weights", "changes", "change pairs"):
            self.clear(self.parts[1][name], self.unit * LINE)

    def pack_pairs(self, lines: list[ir.Value], into: ir.Value) -> None:
        """Write 16 rows as half of the right factor of products over 32 queries: a tile for every 16 channels."""
        e, build = self.e, self.e.build
        with e.loop(0, self.dim // 16) as channels:
            target = e.at(into, e.multiply(channels, TILE))
            for i in range(0, 16, 2):
                low, high = (build.zext(e.read(HALVES, e.at(line, e.multiply(channels, 32)), 2), WORDS)
                             for line in lines[i:i + 2])
                e.write(build.or_(low, build.shl(high, constant(WORDS, 16))), e.at(target, i // 2 * LINE))

    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        return in_turn(self.scores(self.keyed("k", visit), part["queries"], part["scores"]),
                       self.scores(self.keyed("v", visit), part["grads"], part["slopes"]))

    def after(self, part: Part, visit: ir.Value) -> list[Step]:
        return in_turn(self.over_queries(part["weights"], part["grad pairs"], self.keyed("d_v", visit, 4)),
                       self.over_queries(part["changes"], part["query pairs"], self.keyed("d_k", visit, 4)),
                       self.over_keys(self.keyed("turned", visit), part["change pairs"], part["output"]))

    def prepare(self, part: Part) -> None:
        """Nothing: the log-sum-exp is known."""

    def between(self, part: Part) -> list[Step]:
        """Scores and slopes to weights and changes of the scores, which two products want in two layouts."""
        e, build = self.e, self.e.build
        state: dict[str, list[ir.Value]] = {}

        def begin() -> None:
            state["lower"] = [build.fneg(e.read(FLOATS, e.at(part["lse"], side * LINE))) for side in range(2)]
            state["delta"] = [e.read(FLOATS, e.at(part["delta"], side * LINE)) for side in range(2)]

        def pair(row: int) -> None:
            changes = []
            for i in (row, row + 1):
                weights, changed = [], []
                for side in range(2):
                    at = i * 2 * LINE + side * LINE
                    weight = e.exp2(e.multiply_add(e.read(FLOATS, e.at(part["scores"], at)), self.scale,
                                                   state["lower"][side]))
                    slope = build.fsub(e.read(FLOATS, e.at(part["slopes"], at)), state["delta"][side])
                    weights.append(e.rounded_words(weight))
                    changed.append(e.rounded_words(build.fmul(weight, slope)))
                e.write(e.line(*weights), e.at(part["weights"], i * LINE))
                e.write(e.line(*changed), e.at(part["changes"], i * LINE))
                changes.append(changed)
            for side in range(2):
                at = (row // 32 * 2 + side) * TILE + row % 32 // 2 * LINE
                e.write(e.pairs(changes[0][side], changes[1][side]), e.at(part["change pairs"], at))

        return [begin, *(lambda row=row: pair(row) for row in range(0, self.unit, 2))]

    def finish(self, row: ir.Value, left: ir.Value) -> None:
        e = self.e
        with e.loop(0, QUERIES // 16) as some:
            self.turn_output(some, e.spread(e.arguments["factor"]))
        with e.loop(0, e.smaller(left, QUERIES)) as i:
            self.copy_row(i, "d_q", row)
