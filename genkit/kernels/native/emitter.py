"""Building blocks of a kernel in LLVM's language: loops, vectors of 16 floats (AVX-512), tiles (AMX)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import chain

from llvmlite import ir

I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER, VOID = ir.PointerType(), ir.VoidType()
FLOATS, WORDS, HALVES = (ir.VectorType(kind, 16) for kind in (FLOAT, I32, I16))

LINE = 64  # bytes of a vector, of a tile's row and of a cache line
TILE = 16 * LINE
SHARED = ("next", "slot", "chains", "starts", "values", "scratch")  # what the threads of a batch see, 8 bytes each
_TILES = 8
# 2^f for f in [0, 1) with the smallest relative error, highest power first: 2.6e-6, far below what bfloat16 resolves,
# and 1.8e-9, below a rounding of a float.
_ROUGH = (0.0135341679, 0.0520114628, 0.241442754, 0.693003836, 1.00000259)
_FINE = (0.0002170225551, 0.001243968788, 0.009678840981, 0.055483342, 0.2402298363, 0.6931469838, 1.000000002)
_FLOOR = 9  # rounding mode of vreduceps: what is above the next lower whole number, without exceptions
_CURRENT = 4  # "round as the processor is set to"

Step = Callable[[], None]


def constant(kind: ir.Type, value: float | int) -> ir.Constant:
    """A constant, in every element if ``kind`` is a vector."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


class Emitter:
    """Writes a kernel, and beside it the loop in which every thread runs it (see ``batch``).

    Args:
        name: of the kernel. arguments: (name, type) of each. Offsets and counts in the code are 64-bit numbers, in
            bytes unless said otherwise.

    Attributes:
        scratch_bytes: memory that a run of the kernel needs.
    """

    def __init__(self, name: str, arguments: Sequence[tuple[str, ir.Type]]):
        self.module = ir.Module(name)
        self.names = tuple(name for name, _ in arguments)
        self._kernel = ir.Function(self.module, ir.FunctionType(VOID, [POINTER, POINTER]), name)
        self.build = ir.IRBuilder(self._kernel.append_basic_block("entry"))
        self.scratch_bytes = 0
        values, self._scratch = self._kernel.args
        self.arguments = {name: self.read(kind, self.at(values, 8 * i), 4) for i, (name, kind) in enumerate(arguments)}

    def finish(self) -> ir.Module:
        """End the kernel and write the loop ``work``."""
        self.build.ret_void()
        work = ir.Function(self.module, ir.FunctionType(VOID, [POINTER]), "work")
        self.build = build = ir.IRBuilder(work.append_basic_block("entry"))
        [shared] = work.args
        field = {name: self.at(shared, 8 * i) for i, name in enumerate(SHARED)}
        count, base = self.read(I64, field["chains"], 8), self.read(POINTER, field["scratch"], 8)
        starts, values = (self.read(POINTER, field[name], 8) for name in ("starts", "values"))
        slot = build.atomic_rmw("add", field["slot"], self.number(1), "seq_cst")
        scratch = self.at(base, self.multiply(slot, self.scratch_bytes))
        test, body, done = (work.append_basic_block(name) for name in ("test", "chain", "end"))
        build.branch(test)
        build.position_at_end(test)
        chain = build.atomic_rmw("add", field["next"], self.number(1), "seq_cst")
        build.cbranch(build.icmp_signed("<", chain, count), body, done)
        build.position_at_end(body)
        first, last = (self.read(I64, self.at(starts, self.multiply(self.add(chain, i), 8)), 8) for i in range(2))
        with self.loop(first, last) as call:
            build.call(self._kernel, [self.at(values, self.multiply(call, 8 * len(self.names))), scratch])
        build.branch(test)
        build.position_at_end(done)
        build.ret_void()
        return self.module

    # ---- numbers and addresses --------------------------------------------------------------------------------------

    def number(self, value: int | ir.Value) -> ir.Value:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms: int | ir.Value) -> ir.Value:
        known = sum(term for term in terms if isinstance(term, int))
        others = [term for term in terms if not isinstance(term, int)]
        if known or not others:
            others.append(self.number(known))
        return reduce(self.build.add, others)

    def multiply(self, *factors: int | ir.Value) -> ir.Value:
        return reduce(self.build.mul, map(self.number, factors))

    def smaller(self, a: int | ir.Value, b: int | ir.Value) -> ir.Value:
        """The smaller of two whole numbers."""
        a, b = self.number(a), self.number(b)
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def greater(self, a: int | ir.Value, b: int | ir.Value) -> ir.Value:
        """The greater of two whole numbers."""
        a, b = self.number(a), self.number(b)
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def at(self, pointer: ir.Value, *offsets: int | ir.Value) -> ir.Value:
        return self.build.gep(pointer, [self.add(*offsets)], source_etype=I8)

    def scratch(self, size: int) -> ir.Value:
        """Some bytes of the scratch memory, from a cache line on."""
        here = self.scratch_bytes
        self.scratch_bytes += -(-size // LINE) * LINE
        return self.at(self._scratch, here)

    def read(self, kind: ir.Type, pointer: ir.Value, align: int = LINE) -> ir.Value:
        return self.build.load(pointer, typ=kind, align=align)

    def write(self, value: ir.Value, pointer: ir.Value, align: int = LINE) -> None:
        self.build.store(value, pointer, align=align)

    def fetch(self, pointer: ir.Value) -> None:
        """Bring a cache line to the level-2 cache; a wrong address does no harm."""
        read, level, data = (ir.Constant(I32, value) for value in (0, 2, 1))
        self.call("llvm.prefetch.p0", VOID, pointer, read, level, data)

    def element(self, kind: ir.IntType, table: str, place: ir.Value) -> ir.Value:
        """Entry of a table of whole numbers that is an argument, as a 64-bit number."""
        size = kind.width // 8
        value = self.read(kind, self.at(self.arguments[table], self.multiply(place, size)), size)
        return value if kind is I64 else self.build.sext(value, I64)

    @contextmanager
    def loop(self, start: int | ir.Value, stop: int | ir.Value) -> Iterator[ir.Value]:
        """The code inside runs for every number from ``start`` up to ``stop``, perhaps never."""
        build, start, stop = self.build, self.number(start), self.number(stop)
        before = build.block
        test, body, done = (build.append_basic_block(name) for name in ("loop", "body", "done"))
        build.branch(test)
        build.position_at_end(test)
        counter = build.phi(I64)
        counter.add_incoming(start, before)
        build.cbranch(build.icmp_signed("<", counter, stop), body, done)
        build.position_at_end(body)
        yield counter
        counter.add_incoming(self.add(counter, 1), build.block)
        build.branch(test)
        build.position_at_end(done)

    @contextmanager
    def loop_carrying(self, stop: int, step: int, values: list[ir.Value]) -> Iterator[ir.Value]:
        """As :meth:`loop`, from 0 in steps; the code inside replaces ``values``, which the next round starts from and
        which hold the last ones in the end."""
        build, before = self.build, self.build.block
        test, body, done = (build.append_basic_block(name) for name in ("loop", "body", "done"))
        build.branch(test)
        build.position_at_end(test)
        counter = build.phi(I64)
        counter.add_incoming(self.number(0), before)
        carried = [build.phi(value.type) for value in values]
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        build.cbranch(build.icmp_signed("<", counter, self.number(stop)), body, done)
        build.position_at_end(body)
        values[:] = carried
        yield counter
        counter.add_incoming(self.add(counter, step), build.block)
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, build.block)
        build.branch(test)
        build.position_at_end(done)
        values[:] = carried

    def call(self, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
        """Call one of LLVM's own functions."""
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [value.type for value in values]), name)
        return self.build.call(known, values)

    # ---- vectors ----------------------------------------------------------------------------------------------------

    def spread(self, scalar: ir.Value) -> ir.Value:
        """A float in all 16 elements."""
        empty = ir.Constant(FLOATS, ir.Undefined)
        first = self.build.insert_element(empty, scalar, ir.Constant(I32, 0))
        return self.build.shuffle_vector(first, empty, constant(WORDS, 0))

    def lanes_below(self, count: ir.Value) -> ir.Value:
        """Truth values: element i is whether i < count."""
        empty = ir.Constant(WORDS, ir.Undefined)
        word = self.build.trunc(count, I32)
        words = self.build.shuffle_vector(
            self.build.insert_element(empty, word, ir.Constant(I32, 0)), empty, constant(WORDS, 0)
        )
        return self.build.icmp_signed("<", ir.Constant(WORDS, list(range(16))), words)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.call("llvm.fma.v16f32", FLOATS, a, b, c)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Element by element; ``b`` where one of them is no number."""
        return self.build.select(self.build.fcmp_ordered(">", a, b), a, b)

    def exp2(self, x: ir.Value, fine: bool) -> ir.Value:
        """2^x, to about a rounding if ``fine``, else to 2.6e-6; 0 for -inf, no number for none."""
        zero, every, mode = constant(FLOATS, 0.0), ir.Constant(I16, -1), ir.Constant(I32, _CURRENT)
        rest = self.call("llvm.x86.avx512.mask.reduce.ps.512", FLOATS, x, ir.Constant(I32, _FLOOR), zero, every, mode)
        first, *factors = _FINE if fine else _ROUGH
        power = constant(FLOATS, first)
        for factor in factors:
            power = self.multiply_add(power, rest, constant(FLOATS, factor))
        return self.call("llvm.x86.avx512.mask.scalef.ps.512", FLOATS, power, x, zero, every, mode)  # times 2^floor(x)

    def rounded_words(self, x: ir.Value) -> ir.Value:
        """Floats as words whose upper half is the nearest bfloat16 (half a step away from zero at a tie)."""
        return self.build.add(self.build.bitcast(x, WORDS), constant(WORDS, 0x8000))

    def nearest_halves(self, x: ir.Value) -> ir.Value:
        """16 bfloat16, ties to even."""
        build, word = self.build, self.build.bitcast(x, WORDS)
        odd = build.and_(build.lshr(word, constant(WORDS, 16)), constant(WORDS, 1))
        word = build.add(build.add(word, constant(WORDS, 0x7FFF)), odd)
        return build.trunc(build.lshr(word, constant(WORDS, 16)), HALVES)

    def pairs(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """Words of two bfloat16 each, from two :meth:`rounded_words`."""
        build = self.build
        return build.or_(build.lshr(low, constant(WORDS, 16)), build.and_(high, constant(WORDS, -65536)))

    def line(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """32 bfloat16 in a row, from the :meth:`rounded_words` of the first and the last 16."""
        build, halves = self.build, ir.VectorType(I16, 32)
        upper = ir.Constant(ir.VectorType(I32, 32), list(range(1, 64, 2)))
        return build.shuffle_vector(build.bitcast(left, halves), build.bitcast(right, halves), upper)

    def transposed(self, rows: Sequence[ir.Value]) -> list[ir.Value]:
        """The columns of 16 vectors of 16."""
        rows, step = list(rows), 8
        while step:
            low = [lane if not lane & step else lane - step + 16 for lane in range(16)]
            high = [lane + step if not lane & step else lane + 16 for lane in range(16)]
            for i in range(16):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (
                        self.build.shuffle_vector(*pair, ir.Constant(WORDS, lanes)) for lanes in (low, high)
                    )
            step //= 2
        return rows

    # ---- tiles ------------------------------------------------------------------------------------------------------

    def open_tiles(self) -> None:
        """Let all eight tiles be 16 rows of 64 bytes; ends with :meth:`close_tiles`."""
        table = self.scratch(LINE)
        self.write(constant(WORDS, 0), table)
        self.write(ir.Constant(I8, 1), table, 1)  # palette
        for tile in range(_TILES):
            self.write(ir.Constant(I16, LINE), self.at(table, 16 + 2 * tile), 2)
            self.write(ir.Constant(I8, 16), self.at(table, 48 + tile), 1)
        self.call("llvm.x86.ldtilecfg", VOID, table)

    def close_tiles(self) -> None:
        self.call("llvm.x86.tilerelease", VOID)

    def clear_tile(self, tile: int) -> None:
        self.call("llvm.x86.tilezero", VOID, ir.Constant(I8, tile))

    def load_tile(self, tile: int, pointer: ir.Value, stride: int = LINE) -> None:
        """Read 16 rows that start ``stride`` bytes apart."""
        self.call("llvm.x86.tileloadd64", VOID, ir.Constant(I8, tile), pointer, self.number(stride))

    def store_tile(self, tile: int, pointer: ir.Value, stride: int = LINE) -> None:
        self.call("llvm.x86.tilestored64", VOID, ir.Constant(I8, tile), pointer, self.number(stride))

    def multiply_tiles(self, into: int, left: int, right: int) -> None:
        """Add to ``into`` (16x16 floats) the product of ``left`` (16 rows of 32 bfloat16) and ``right`` (32 rows of 16,
        two rows interleaved in one)."""
        self.call("llvm.x86.tdpbf16ps", VOID, *(ir.Constant(I8, tile) for tile in (into, left, right)))


def weave(*streams: Sequence[Step]) -> None:
    """Emit several independent sequences of steps evenly mixed, so that the processor works on all of them at once."""
    placed = [
        ((place + 0.5) / len(steps), at, step) for at, steps in enumerate(streams) for place, step in enumerate(steps)
    ]
    for _, _, step in sorted(placed, key=lambda item: item[:2]):
        step()


def in_turn(*parts: Sequence[Step]) -> list[Step]:
    """One sequence of steps after the other."""
    return list(chain(*parts))
