"""What kernels are made of on one target, as JSON lines: registers, stack, shared memory and their hot loops; beside
them a plain dense forward pass and FlexAttention's templates, compiled by the same Triton.

``python -m tests.aot.measure TARGET DIM [DIM ...] [--only TEXT ...]``; ``python -m benchmarks kernels_static`` runs it
per target and writes the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

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


class Kernel(NamedTuple):
    """A kernel of the table: how it is compiled, names and tiles of its loops, and how often a step of one walks the
    loop inside it."""

    label: str
    compile: Callable[[], Any]
    loops: tuple[str, ...]
    tiles: list[Tile]
    trips: int = 1


def measurements(arch: str, dim: int, only: Collection[str] = ()) -> Iterator[dict]:
    """One row per loop of every kernel whose label holds all of ``only``; ``arch`` as :func:`pretend` was given."""
    for kernel in (*_ours(arch, dim), *(_others(arch, dim) if dim in (64, 128) else ())):
        if all(text in kernel.label for text in only):
            yield from _rows(arch, kernel)


def _ours(arch: str, dim: int) -> Iterator[Kernel]:
    for variant in asked(dim):
        names, tile = variant.loops(arch), variant.tile(arch)
        yield Kernel(
            str(variant),
            lambda v=variant: launch(v, arch).compile(),
            names,
            [tile] * len(names),
            variant.trips,
        )
    tiles = tiles_on(arch, dim, DTYPES["bf16"])
    for name in KERNELS:
        compiles = token_select(name, arch, dim, DTYPES["bf16"])
        yield Kernel(f"token_select {name} D={dim} bf16", compiles, ("full",), [tiles[name]])


def _others(arch: str, dim: int) -> Iterator[Kernel]:
    """What ours is held against."""
    compiles = partial(dense.compile_dense, arch, dim)
    yield Kernel(f"dense forward D={dim} bf16", compiles, ("all",), [dense.tile(arch, dim)])
    tiles = flex_template.default_tiles(arch, dim)
    for tma, which in product((False, True) if arch in BULK else (False,), ("forward", "backward")):
        label = f"FlexAttention {which} D={dim} bf16, rule of three axes" + ", TMA" * tma
        compiles = partial(flex_template.compile_template, arch, dim, which, tma)
        if which == "forward":
            yield Kernel(label, compiles, ("rule", "full"), [tiles["forward"]] * 2)
        else:
            names = ("dQ: rule", "dQ: full", "dK and dV: rule", "dK and dV: full")
            yield Kernel(label, compiles, names, [tiles["dq"]] * 2 + [tiles["dkv"]] * 2)


def _rows(arch: str, kernel: Kernel) -> Iterator[dict]:
    compiled, names, tiles = kernel.compile(), kernel.loops, kernel.tiles
    used, found = usage(compiled), hot_loops(assembly(compiled))
    if len(found) != len(names):
        names = tuple(f"loop {number}" for number in range(1, len(found) + 1))
        tiles = [tiles[0]] * len(found)
    lanes = 64 if arch.startswith("gfx") else 32
    for name, loop, tile in zip(names, found, tiles, strict=True):
        scores = tile.queries * tile.keys * (2 if name == PAIRS else 1)
        yield {
            "target": arch,
            "kernel": kernel.label,
            "loop": name,
            "tile": f"{tile.queries}x{tile.keys}, {tile.warps}, {tile.stages}",
            "instructions x warps / 1,024 scores": round(loop.slots(tile.warps, scores, kernel.trips)),
            "exp2 / score": round(loop.exponentials_per_score(tile.warps * lanes, scores), 2),
            "in flight": loop.waits,
            "fences": loop.fences,
            "products": ", ".join(f"{number} {name}" for name, number in loop.products.items()),
            "registers": used.registers,
            "stack": used.spilled,
            "KiB": round(used.shared / 1024),
        }


def main() -> None:
    """Print a JSON object per loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("dim", nargs="+", type=int)
    parser.add_argument("--only", action="append", default=[], help="kernels whose label holds this text; repeatable")
    options = parser.parse_args()
    pretend(options.target)
    for dim in options.dim:
        for row in measurements(options.target, dim, options.only):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
