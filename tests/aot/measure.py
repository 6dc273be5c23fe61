"""What kernels are made of on one target, as JSON lines: registers, stack, shared memory and their hot loops; beside
them a plain dense forward pass and FlexAttention's templates, compiled by the same Triton.

``python -m tests.aot.measure TARGET DIM [DIM ...]``; ``python -m benchmarks kernels_static`` runs it per target and
writes the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product

from genkit.kernels.block_sparse.impl.triton.tile_sizes import BULK, Tile
from tests.aot import dense, flex_template
from tests.aot.driver import pretend, usage
from tests.aot.loops import assembly, hot_loops
from tests.aot.variants import DTYPES, KERNELS, PAIRS, Variant, launch
from tests.aot.variants_select import tiles_on, token_select


def asked(dim: int) -> list[Variant]:
    """The variants the methods use, and the one with the most code; of head sizes but 64 and 128 one each."""
    if dim not in (64, 128):
        return [Variant(kernel, dim, "bf16", "box", general=kernel == "dkv") for kernel in KERNELS]
    kinds = [("none", "none", False), ("none", "none", True), ("box", "none", False), ("box", "none", True)]
    kinds += [("bits", "none", True), ("box", "one rank", True), ("disc", "low rank", True)]
    small = [Variant("forward", dim, "bf16", "box", block=(128, 64))]
    small += [Variant("forward", dim, "bf16", "box", eight=True)]
    return small + [
        Variant(kernel, dim, "bf16", rule, bias, general)
        for kernel, (rule, bias, general) in product(KERNELS, kinds)
        if kernel == "dkv" or not general or bias != "none" or rule == "bits"
    ]


def measurements(arch: str, dim: int) -> Iterator[dict]:
    """One row per loop of every kernel; ``arch`` is what :func:`pretend` was given."""
    for variant in asked(dim):
        names, tile = variant.loops(arch), variant.tile(arch)
        yield from _rows(arch, str(variant), launch(variant, arch).compile(), names, [tile] * len(names), variant.trips)
    tiles = tiles_on(arch, dim, DTYPES["bf16"])
    for kernel in KERNELS:
        compiled = token_select(kernel, arch, dim, DTYPES["bf16"])()
        yield from _rows(arch, f"token_select {kernel} D={dim} bf16", compiled, ("full",), [tiles[kernel]])
    if dim in (64, 128):
        yield from _others(arch, dim)


def _others(arch: str, dim: int) -> Iterator[dict]:
    """What ours is held against."""
    tile = dense.tile(arch, dim)
    yield from _rows(arch, f"dense forward D={dim} bf16", dense.compile_dense(arch, dim), ("all",), [tile])
    tiles = flex_template.default_tiles(arch, dim)
    for tma, which in product((False, True) if arch in BULK else (False,), ("forward", "backward")):
        label = f"FlexAttention {which} D={dim} bf16, rule of three axes" + ", TMA" * tma
        compiled = flex_template.compile_template(arch, dim, which, tma)
        if which == "forward":
            yield from _rows(arch, label, compiled, ("rule", "full"), [tiles["forward"]] * 2)
        else:
            names = ("dQ: rule", "dQ: full", "dK and dV: rule", "dK and dV: full")
            yield from _rows(arch, label, compiled, names, [tiles["dq"]] * 2 + [tiles["dkv"]] * 2)


def _rows(arch: str, label: str, compiled, names: tuple[str, ...], tiles: list[Tile], trips: int = 1) -> Iterator[dict]:
    """``tiles`` of the loops; ``trips``: how often a step walks the loop inside it."""
    used, found = usage(compiled), hot_loops(assembly(compiled))
    if len(found) != len(names):
        names = tuple(f"loop {number}" for number in range(1, len(found) + 1))
        tiles = [tiles[0]] * len(found)
    lanes = 64 if arch.startswith("gfx") else 32
    for name, loop, tile in zip(names, found, tiles, strict=True):
        scores = tile.queries * tile.keys * (2 if name == PAIRS else 1)
        yield {
            "target": arch,
            "kernel": label,
            "loop": name,
            "tile": f"{tile.queries}x{tile.keys}, {tile.warps}, {tile.stages}",
            "instructions x warps / 1,024 scores": round(loop.slots(tile.warps, scores, trips)),
            "exp2 / score": round(loop.exponentials_per_score(tile.warps * lanes, scores), 2),
            "in flight": loop.waits,
            "fences": loop.fences,
            "products": ", ".join(f"{number} {name}" for name, number in loop.products.items()),
            "registers": used.registers,
            "stack": used.spilled,
            "KiB": round(used.shared / 1024),
        }


def main(arch: str, *dims: str) -> None:
    """Print a JSON object per loop."""
    pretend(arch)
    for dim in dims:
        for row in measurements(arch, int(dim)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
