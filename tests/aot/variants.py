"""The kernel launches whose binaries are checked: the shapes are small, the code is that of any length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
import triton.language as tl

from genkit.kernels.block_sparse.impl.triton.bias import STRIP, Factor, LowRankTables, QuadraticTables, padded_rank
from genkit.kernels.block_sparse.impl.triton.launch import (
    BiasTables,
    Inputs,
    Launch,
    Problem,
    Rows,
    dkv_launch,
    dq_launch,
    forward_launch,
    prepare_launch,
)
from genkit.kernels.block_sparse.impl.triton.tile import (
    BITS,
    BOX,
    NO_MASK,
    RULE,
    BoxTables,
    Lists,
    RuleTables,
    Steps,
    Tokens,
)
from genkit.kernels.block_sparse.impl.triton.tile_sizes import (
    BULK,
    SPECIALISES,
    Tile,
    apart,
    bulk_tile,
    candidates,
    fit,
    parts_on,
    unpipelined,
)
from genkit.kernels.channels import one_part

LENGTH, HEADS, BLOCK, RANK, AXES = 1024, 4, 128, 64, 3
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KERNELS = ("forward", "dq", "dkv")
OTHER_SIZES = (40, 72, 80, 96, 160, 192, 256)
PAIRS = "pairs of full"  # a loop whose step takes two key blocks
EVERYTHING = "sm_90"
FAMILIES = ("sm_80", "sm_90", "gfx942")
# Where the short list compiles the most code of all: dK/dV, which needs most registers, on more targets.
MOST_CODE = {"forward": FAMILIES, "dq": FAMILIES, "dkv": (*FAMILIES, "sm_89", "sm_120", "gfx950")}
# Rules and biases, and whether the call was general, that spilled once where those above did not.
SPILLED_ONCE = {
    ("sm_80", "dkv"): [("box", "low rank", True), ("none", "low rank", False)],
    ("sm_89", "forward"): [("disc", "quadratic", True)],
    ("sm_89", "dkv"): [("disc", "quadratic", True)],
    ("sm_90", "dq"): [("disc", "quadratic", True)],
    ("sm_90", "dkv"): [("disc", "none", True)],
    ("sm_100", "forward"): [("disc", "quadratic", True)],
    ("sm_100", "dkv"): [("none", "quadratic", True)],
    ("sm_120", "forward"): [("disc", "quadratic", True)],
    ("sm_120", "dkv"): [("disc", "none", True), ("none", "low rank", False), ("none", "quadratic", True)],
    ("gfx942", "dq"): [("disc", "quadratic", True), ("bits", "quadratic", False)],
    ("gfx950", "forward"): [("disc", "quadratic", True)],
    ("gfx942", "dkv"): [("disc", "quadratic", True), ("box", "one rank", True)],
}


@dataclass(frozen=True)
class Variant:
    """One way a plan can ask for a kernel; the tile is that of the table.

    ``rule``: what decides partial blocks, ``"none"`` (only ragged tails), ``"box"`` (windows and token groups packed
    into words), ``"axes"`` (windows on three axes and token groups read axis by axis), ``"disc"`` (the same and a
    distance) or ``"bits"`` (bit tiles). ``bias``: ``"none"``, ``"low rank"`` (of the largest rank), ``"one rank"`` or
    ``"four ranks"`` (written out in the loop), or ``"quadratic"`` (of the most axes). ``general``: grouped heads and
    lengths that blocks do not divide; otherwise one key head per query head and whole blocks, which compile to shorter
    code. ``bulk``: whether tiles come through tensor descriptors, None as the target has it.
    ``block``: tokens per query and key block. ``measured``: whether spills count; otherwise
    it only has to compile and to fit the shared memory. ``eight``: queries and keys are int8, forward only.
    ``specialised``: copies, products and softmax have warps of their own.
    """

    kernel: str
    dim: int
    dtype: str = "bf16"
    rule: str = "none"
    bias: str = "none"
    general: bool = False
    block: tuple[int, int] = (BLOCK, BLOCK)
    measured: bool = True
    bulk: bool | None = None
    eight: bool = False
    specialised: bool = False

    def copies(self, arch: str) -> bool:
        """Whether the copy engine of a target is used: as by default there, or as ``bulk`` says."""
        possible = self.bias == "none" or (self.light and self._whole(arch) is not None)
        possible &= self.rule not in ("axes", "disc") and self.dtype != "fp32" and not self.eight
        return possible and (arch in BULK if self.bulk is None else self.bulk)

    @property
    def light(self) -> bool:
        """Whether there is a bias of rank 1."""
        return self.bias == "one rank"

    def _whole(self, arch: str) -> Tile | None:
        """The tile for the copy engine, where one fits the blocks."""
        return bulk_tile(arch, self.kernel, self.dim, DTYPES[self.dtype], *self.block, self.rule == "bits", self.light)

    @property
    def heavy(self) -> bool:
        """Whether there is a bias, or a rule that is read axis by axis."""
        return self.bias != "none" or self.rule in ("axes", "disc")

    @property
    def may_spill(self) -> bool:
        """Whether spills are let pass. float32 has no matrix unit to go to; it must compile, no more."""
        return self.dtype == "fp32" or not self.measured

    def tile(self, arch: str) -> Tile:
        """Tile that a plan of these blocks gets on a target."""
        plain = self.rule == "none" and not (self.kernel == "dkv" and self.general)
        heavy = self.heavy
        bits, dtype = self.rule == "bits", DTYPES[self.dtype]
        if self.copies(arch) and (tile := self._whole(arch)):
            return tile._replace(specialised=self.specialised)
        quadratic = self.bias == "quadratic"
        options = candidates(arch, self.kernel, self.dim, dtype, plain, heavy, bits, quadratic)
        tile = fit(options, self.kernel, *self.block)
        return unpipelined(tile, arch, self.kernel, aligned=self.dim % 16 == 0)

    @property
    def trips(self) -> int:
        """How often a step walks the loop inside it, over strips of the ranks of a bias."""
        return RANK // STRIP.value if self.bias == "low rank" else 1

    def loops(self, arch: str) -> tuple[str, ...]:
        """What the loops over its lists are called, in the order of the source."""
        ragged = ["ragged"] if self.kernel != "dkv" and self.rule in ("none", "box", "axes") else []
        tile = self.tile(arch)
        halves = self.block[1] // tile.keys
        paired = self.kernel == "forward" and halves <= 2 and tile.keys <= 64 and tile.queries >= 2 * tile.keys
        paired &= self.copies(arch) and self.dim <= 128 and self.bias == "none"
        full = [PAIRS] * paired + ["full"] * (not paired or halves == 1)
        names = *full, *ragged, *([self.rule] if self.rule != "none" else [])
        if self.kernel == "dkv" and apart(self.dim):
            return tuple(f"{which}: {name}" for which in ("dK", "dV") for name in names)
        return names

    def __str__(self) -> str:
        notes = [f"{self.rule} rule" * (self.rule != "none"), f"{self.bias} bias" * (self.bias != "none")]
        notes += [
            "general" * self.general,
            "no TMA" * (self.bulk is False),
            "int8 queries and keys" * self.eight,
            "specialised warps" * self.specialised,
            "blocks of {}x{}".format(*self.block) * (self.block != (BLOCK, BLOCK)),
        ]
        return ", ".join([f"{self.kernel} D={self.dim} {self.dtype}", *filter(None, notes)])


def variants(arch: str, full: bool) -> Iterator[Variant]:
    """The short list meets every kernel, head dim, dtype and row of the table on every target, the tiles of plans with
    blocks of 64 where they differ, and for dK/dV, which needs most registers, general shapes; the most code of all is a
    distance and a bias of the largest rank together. One target gets everything that is rarely used besides. The full
    list is every combination, on every target."""
    for kernel, dim in product(KERNELS, (64, 128)):
        # bf16 with the rule and fp16 without are the two corners: same code shape, other conversions.
        ruled = Variant(kernel, dim, "bf16", "box", general=kernel == "dkv")
        yield ruled
        yield Variant(kernel, dim, "fp16")
        yield replace(ruled, rule="bits")
        yield replace(ruled, rule="axes", general=True)  # what packs into no word: large grids
        small = replace(ruled, block=(64, 64))
        if small.tile(arch) != ruled.tile(arch):
            yield small
        if kernel == "forward" and arch in BULK:
            yield replace(ruled, rule="bits", block=(128, 64))  # full blocks in pairs: the most shared memory
        if kernel == "forward":
            yield replace(ruled, eight=True)
        if kernel == "forward" and arch in SPECIALISES:
            yield replace(ruled, specialised=True, measured=False)
        if full:
            yield replace(ruled, general=True)
        if arch in BULK or full:
            yield Variant(kernel, dim, "bf16", "box", "one rank", general=True)
        if full or (dim == 128 and arch in MOST_CODE[kernel]):
            most = Variant(kernel, dim, "bf16", "disc", "low rank", general=True)
            yield most
            small = replace(most, block=(64, 64))
            if small.tile(arch)[:3] != most.tile(arch)[:3]:
                yield small
        yield from (Variant(kernel, dim, "bf16", *once) for once in SPILLED_ONCE.get((arch, kernel), ()))
        if arch == EVERYTHING or full:
            yield from (replace(rare, measured=full or kernel == "dkv") for rare in _rare(kernel, dim))
        if full:
            yield from _every_combination(kernel, dim)
    yield from _other_sizes(arch, full)


def _other_sizes(arch: str, full: bool) -> Iterator[Variant]:
    """Heads in two parts, and wider ones than 128: with a packed rule everywhere, and where wide heads have tiles of
    their own with everything that chooses another of them."""
    for kernel, dim in product(
        KERNELS,
        OTHER_SIZES if full or arch == EVERYTHING else (72, 80, 96, 160, 192, 256) if arch == "sm_100" else (80, 256),
    ):
        ruled = Variant(kernel, dim, "bf16", "box", general=kernel == "dkv")
        yield ruled
        if arch == EVERYTHING and dim in (160, 256):
            yield replace(ruled, rule="bits")
        if full or (arch == EVERYTHING and dim == 256):
            yield from (replace(ruled, block=(64, 64)), replace(ruled, rule="axes"))
        if kernel == "forward" and arch in BULK and (full or dim in (192, 256)):
            yield replace(ruled, block=(128, 64))  # blocks of one tile, which narrower heads walk in pairs


def _rare(kernel: str, dim: int) -> Iterator[Variant]:
    if dim == 128:
        yield Variant(kernel, 128, "bf16", "disc", "quadratic", general=True)
        yield Variant(kernel, 128, "bf16", "box", block=(128, 16))
        # Means of several keys, whose ragged last one weighs less: what a pyramid of keys asks for.
        yield Variant(kernel, 128, "bf16", bias="one rank", general=True, block=(128, 8))
        yield Variant(kernel, 80, "fp16", "box", general=True, block=(80, 48))
    else:
        yield Variant(kernel, 64, "fp32")


def _every_combination(kernel: str, dim: int) -> Iterator[Variant]:
    kinds = product(("fp16", "bf16"), ("none", "box", "disc", "bits"), ("none", "low rank", "quadratic"), (False, True))
    for dtype, rule, bias, general in kinds:
        yield Variant(kernel, dim, dtype, rule, bias, general)
    yield Variant(kernel, dim, "fp32", "box")


def launch(variant: Variant, arch: str) -> Launch:
    """The launch of a variant with the table's tile for a target."""
    problem = _problem(variant)
    tile, dim, dtype = variant.tile(arch), variant.dim, DTYPES[variant.dtype]
    key_heads = HEADS // 2 if variant.general else HEADS
    length = _length(variant)
    q, k = (torch.zeros(1, length, heads, dim, dtype=dtype) for heads in (HEADS, key_heads))
    row = torch.zeros(1, HEADS, length)
    extra = None if variant.bias == "none" else torch.zeros(1, HEADS, length, problem.bias.width)
    parts = parts_on(arch, dim, variant.heavy)
    inputs, info = Inputs.of(q, k, k, q, parts=parts), Rows.empty(q, problem)
    if variant.eight:
        steps = Steps(row, torch.zeros(1, key_heads, length))
        inputs = Inputs(q.to(torch.int8), k.to(torch.int8), k, steps=steps, parts=one_part(max(32, dim)))
    if variant.kernel == "forward":
        return forward_launch(inputs, q, row, problem, 0.1, tile, variant.copies(arch))
    if variant.kernel == "dq":
        return dq_launch(inputs, info, q, extra, problem, 0.1, tile, variant.copies(arch))
    extra = None if variant.bias == "quadratic" else extra
    # with low-rank factors every query head has gradients of its own, added up in float32 where heads share keys
    factors = variant.bias not in ("none", "quadratic")
    d_keys = (q.float() if variant.general else q) if factors else k
    return dkv_launch(inputs, info, d_keys, d_keys, extra, problem, 0.1, tile, variant.copies(arch))


def prepare() -> Launch:
    """The launch of the kernel that the backward kernels read from."""
    x, row = torch.zeros(1, LENGTH, HEADS, 128, dtype=torch.bfloat16), torch.zeros(1, HEADS, LENGTH)
    return prepare_launch(x, x, row, row, Rows(row, row, LENGTH))


def _table(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _length(variant: Variant) -> int:
    return LENGTH - 24 if variant.general else LENGTH


def _problem(variant: Variant) -> Problem:
    block_q, block_k = variant.block
    length = _length(variant)
    blocks_q, blocks_k = -(-length // block_q), -(-length // block_k)
    own = blocks_k if variant.kernel == "dkv" else blocks_q
    count, index = _table(1, HEADS, own), _table(1, HEADS, own, 7)
    bits, ragged = variant.rule == "bits", variant.rule in ("box", "axes") and variant.kernel != "dkv"
    # Without a rule there are still partial blocks: ragged tails. dK and dV take them for full ones.
    part = (count, index, 7) if variant.kernel != "dkv" or variant.rule != "none" else (None, None, None)
    extra = index if bits else None, count if ragged else None
    lists = Lists(count, index, 7, *part, *extra, HEADS * own, own)
    if variant.kernel == "dkv" and variant.rule == "none":
        # without a rule the inverse lists lie one behind the other
        lists = Lists(_table(1, HEADS, own + 1), index, 16 * own, *[None] * 5, HEADS, 1, own + 1)
    tokens = Tokens(length, length, _table(blocks_q), _table(blocks_k))
    kind, mask = (BITS, _table(9, block_q, -(-block_k // 32))) if bits else _rule(variant.rule)
    axes = AXES if kind == RULE else 0
    return Problem(block_q, block_k, blocks_q, blocks_k, lists, tokens, kind.value, mask, axes, _bias(variant.bias))


def _rule(kind: str) -> tuple[tl.constexpr, RuleTables | BoxTables | None]:
    if kind == "none":
        return NO_MASK, None
    if kind == "box":
        word = _table(LENGTH)
        return BOX, BoxTables(word, word, word[None], word[None], 1 << 20, 0)
    axis, group = _table(AXES, LENGTH), _table(LENGTH)
    disc = (axis, 9) if kind == "disc" else (None, None)
    return RULE, RuleTables(axis, axis, axis, *disc, group, group, _table(1, LENGTH), 0, LENGTH, LENGTH)


def _bias(kind: str) -> BiasTables:
    if kind == "none":
        return BiasTables()
    if kind in ("low rank", "one rank", "four ranks"):
        rank = {"low rank": RANK, "one rank": 1, "four ranks": 4}[kind]
        factor = Factor(torch.zeros(1, HEADS, rank, LENGTH), 0, rank * LENGTH, LENGTH)
        return BiasTables(LowRankTables(factor, factor), 1, rank, padded_rank(rank))
    axes, line = torch.zeros(4, LENGTH), torch.zeros(LENGTH)
    tables = QuadraticTables(axes, axes, torch.zeros(HEADS, 4), 4, torch.zeros(4), line, line, LENGTH, LENGTH)
    return BiasTables(tables, 2, 4, 4)
