"""What kernels are made of on one target, as JSON lines: registers, stack, shared memory and their hot loops.

``python -m tests.aot.measure TARGET DIM [DIM ...]``; ``python -m benchmarks kernels_static`` runs it per target and
writes the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product

from tests.aot.driver import pretend, usage
from tests.aot.loops import assembly, hot_loops
from tests.aot.variants import DTYPES, KERNELS, PAIRS, Variant, launch
from tests.aot.variants_select import tiles_on, token_select


def asked(dim: int) -> list[Variant]:
    """The variants the methods use, and the one with the most code; of head sizes but 64 and 128 one each."""
    if dim not in (64, 128):
        return [Variant(kernel, dim, "bf16", "box", general=kernel == "dkv") for kernel in KERNELS]
    kinds = [("none", "none", False), ("none", "none", True), ("box", "none", False), ("box", "none", True)]
    kinds += [("bits", "none", True), ("disc", "low rank", True)]
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
        yield from _rows(arch, str(variant), variant.tile(arch), launch(variant, arch).compile(), variant.loops(arch))
    tiles = tiles_on(arch, dim, DTYPES["bf16"])
    for kernel in KERNELS:
        compiled = token_select(kernel, arch, dim, DTYPES["bf16"])()
        yield from _rows(arch, f"token_select {kernel} D={dim} bf16", tiles[kernel], compiled, ("full",))


def _rows(arch: str, label: str, tile, compiled, names: tuple[str, ...]) -> Iterator[dict]:
    used, found = usage(compiled), hot_loops(assembly(compiled))
    if len(found) != len(names):
        names = tuple(f"loop {number}" for number in range(1, len(found) + 1))
    lanes = 64 if arch.startswith("gfx") else 32
    for name, loop in zip(names, found, strict=True):
        scores = tile.queries * tile.keys * (2 if name == PAIRS else 1)
        yield {
            "target": arch,
            "kernel": label,
            "loop": name,
            "tile": f"{tile.queries}x{tile.keys}, {tile.warps}, {tile.stages}",
            "instructions x warps / 1,024 scores": round(loop.slots(tile.warps, scores)),
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
