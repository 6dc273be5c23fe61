"""Block-sparse attention with AMX tiles: the forward kernel.

Running maxima and sums follow FlashAttention; as in FlashAttention-4 the output is rescaled only when a maximum has
grown by more than a factor of 2^8, which happens in the first steps and seldom later.
"""

from __future__ import annotations

from llvmlite import ir

from genkit.kernels.amx.emitter import FLOAT, FLOATS, I16, I64, LINE, POINTER, TILE, Step, constant
from genkit.kernels.block_sparse.amx_visits import HALF, QUERIES
from genkit.kernels.block_sparse.amx_walk import COMMON_ARGUMENTS, Part, Walk

_SLACK = 8.0  # powers of two by which weights may exceed 1 before the output is rescaled
_LOWEST = -1e30  # running maximum before the first key; finite, so that a hidden key gives 0 and not "no number"


class Forward(Walk):
    """Emits the forward kernel."""

    NAME = "block_sparse_forward"
    ARGUMENTS = (
        *COMMON_ARGUMENTS,
        ("v", POINTER),  # bfloat16 (keys / 32, D, 32)
        ("bias", POINTER),  # float (visits of the one block, halves, unit, 32) in units of the scores, or null
        ("out", POINTER),  # bfloat16 (queries, D)
        ("out_stride", I64),
        ("top", POINTER),  # float (queries,): running maximum of the scores, in powers of two
        ("total", POINTER),  # float (queries,): sum of 2^(score - top)
    )

    def sizes(self) -> dict[str, int]:
        return {"queries": self.dim * LINE, "scores": self.unit * 2 * LINE, "weights": self.unit * LINE,
                "output": self.dim * 2 * LINE, "top": 2 * LINE, "total": 2 * LINE}

    def start(self, row: ir.Value, left: ir.Value) -> None:
        e, first = self.e, self.parts[0]
        with e.loop(0, QUERIES // 16) as some:
            half, side = self.places(some)
            self.pack_columns(self.lines("q", some, row, left), e.at(first["queries"], half, e.multiply(side, TILE)))
            for name, value in (("top", _LOWEST), ("total", 0.0)):
                e.write(constant(FLOATS, value), e.at(first[name], half, e.multiply(side, LINE)))
        for part in self.parts:
            self.clear(part["output"], self.dim * 2 * LINE)
        self.clear(self.parts[1]["weights"], self.unit * LINE)

    def before(self, part: Part, visit: ir.Value) -> list[Step]:
        return self.scores(self.keyed("k", visit), part["queries"], part["scores"])

    def after(self, part: Part, visit: ir.Value) -> list[Step]:
        return self.over_keys(self.keyed("v", visit), part["weights"], part["output"])

    def adjust(self, part: Part, visit: ir.Value, begin: ir.Value, half: ir.Value) -> None:
        """Add the bias, then hide."""
        e, build = self.e, self.e.build
        bias = e.arguments["bias"]
        with build.if_then(build.icmp_unsigned("!=", bias, ir.Constant(POINTER, None))):
            tile = e.add(e.multiply(build.sub(visit, begin), e.arguments["halves"]), half)
            source = e.at(bias, e.multiply(tile, self.unit * 2 * LINE))
            with e.loop(0, self.unit * 2) as line:
                offset = e.multiply(line, LINE)
                at = e.at(part["scores"], offset)
                e.write(build.fadd(e.read(FLOATS, at), e.read(FLOATS, e.at(source, offset), 4)), at)
        super().adjust(part, visit, begin, half)

    def prepare(self, part: Part) -> None:
        """Bring the running maxima up to these scores, and output and sums with them, where that is due."""
        e, build = self.e, self.e.build
        old, new = [], []
        for side in range(2):
            best = [e.read(FLOATS, e.at(part["scores"], row * 2 * LINE + side * LINE)) for row in range(4)]
            for row in range(4, self.unit):
                score = e.read(FLOATS, e.at(part["scores"], row * 2 * LINE + side * LINE))
                best[row % 4] = e.larger(best[row % 4], score)
            best = e.larger(e.larger(best[0], best[1]), e.larger(best[2], best[3]))
            old.append(e.read(FLOATS, e.at(part["top"], side * LINE)))
            new.append(e.larger(build.fmul(best, self.scale), old[side]))
        grown = [build.fcmp_ordered(">", after, build.fadd(before, constant(FLOATS, _SLACK)))
                 for before, after in zip(old, new, strict=True)]
        due = build.icmp_unsigned("!=", build.bitcast(build.or_(*grown), I16), ir.Constant(I16, 0))
        with build.if_then(due):
            for side in range(2):
                shrink = e.exp2(build.fsub(old[side], new[side]))
                e.write(new[side], e.at(part["top"], side * LINE))
                total = e.at(part["total"], side * LINE)
                e.write(build.fmul(shrink, e.read(FLOATS, total)), total)
                with e.loop(0, self.dim) as row:
                    at = e.at(part["output"], e.multiply(row, 2 * LINE), side * LINE)
                    e.write(build.fmul(shrink, e.read(FLOATS, at)), at)

    def between(self, part: Part) -> list[Step]:
        """Scores to weights (two keys of a query in a word) and their sums."""
        return [step for side in range(2) for step in self._exponentials(part, side)]

    def _exponentials(self, part: Part, side: int) -> list[Step]:
        e, build = self.e, self.e.build
        state: dict[str, ir.Value] = {}
        total = e.at(part["total"], side * LINE)

        def begin() -> None:
            state["lower"] = build.fneg(e.read(FLOATS, e.at(part["top"], side * LINE)))

        def pair(row: int) -> None:
            low, high = (e.exp2(e.multiply_add(
                e.read(FLOATS, e.at(part["scores"], (row + i) * 2 * LINE + side * LINE)), self.scale, state["lower"]))
                for i in range(2))
            for name, weight in (("even", low), ("odd", high)):  # two sums: one alone would wait for itself
                state[name] = build.fadd(state[name], weight) if name in state else weight
            e.write(e.pairs(e.rounded_words(low), e.rounded_words(high)),
                    e.at(part["weights"], (row // 32 * 2 + side) * TILE + row % 32 // 2 * LINE))

        def end() -> None:
            e.write(build.fadd(e.read(FLOATS, total), build.fadd(state["even"], state["odd"])), total)

        return [begin, *(lambda row=row: pair(row) for row in range(0, self.unit, 2)), end]

    def finish(self, row: ir.Value, left: ir.Value) -> None:
        e, build, zero, part = self.e, self.e.build, constant(FLOATS, 0.0), self.parts[0]
        with e.loop(0, QUERIES // 16) as some:
            half, side = self.places(some)
            total = e.read(FLOATS, e.at(part["total"], half, e.multiply(side, LINE)))
            seen = build.fcmp_unordered("!=", total, zero)
            self.turn_output(some, build.select(seen, build.fdiv(constant(FLOATS, 1.0), total), zero))
        with e.loop(0, e.smaller(left, QUERIES)) as i:
            self.copy_row(i, "out", row)
            half = e.multiply(build.lshr(i, e.number(5)), self.apart)
            place = e.multiply(build.and_(i, e.number(HALF - 1)), 4)
            for name in ("top", "total"):
                found = e.read(FLOAT, e.at(part[name], half, place), 4)
                e.write(found, e.at(e.arguments[name], e.multiply(e.add(row, i), 4)), 4)
