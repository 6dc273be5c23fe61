"""Compile the kernels for one target and compare registers, spills, shared memory and hot loops with the budgets.

Run through ``python -m tests.aot``, which starts one process per target.
"""

from __future__ import annotations

import sys
import time

from genkit.kernels.block_sparse.impl.triton.tile_sizes import SHARED_KIB
from tests.aot.budgets import over_budget, twice
from tests.aot.driver import pretend, usage
from tests.aot.loops import assembly, hot_loops
from tests.aot.variants import DTYPES, KERNELS, Variant, launch, prepare, variants
from tests.aot.variants_lists import lists
from tests.aot.variants_pool import pool
from tests.aot.variants_select import KERNELS as SELECT_KERNELS
from tests.aot.variants_select import tiles_on, token_select


def launches(arch: str, full: bool):
    """(label, compile function, tile, may spill, variant if it is one) of everything to be checked."""
    for variant in dict.fromkeys(variants(arch, full)):
        told = _told(variant.tile(arch))
        yield f"block_sparse {variant}", launch(variant, arch).compile, told, variant.may_spill, variant
    yield "block_sparse prepare D=128 bf16", prepare().compile, "rows", False, None
    for kernel in SELECT_KERNELS if full else SELECT_KERNELS[:3]:
        for dim in (64, 128) if full else (128,):
            tile = tiles_on(arch, dim, DTYPES["bf16"]).get(kernel)
            told = _told(tile) if tile else "rows"
            yield (
                f"token_select {kernel} D={dim} bf16",
                token_select(kernel, arch, dim, DTYPES["bf16"]),
                told,
                False,
                None,
            )
    for label, compile_kernel in lists():
        yield label, compile_kernel, "rows", False, None
    for dim, dtype in ((64, "fp16"), (128, "bf16")):
        yield f"scores pool D={dim} {dtype}", pool(dim, DTYPES[dtype], counted=dim == 128), "rows", False, None


def _loops_over_budget(arch: str, label: str, variant: Variant | None, compiled) -> list[str]:
    if variant is not None:
        return over_budget(arch, variant, variant.tile(arch), hot_loops(assembly(compiled)))
    operator, kernel, *_ = label.split()
    if operator != "token_select" or kernel not in KERNELS:
        return []
    tile = tiles_on(arch, 128 if "D=128" in label else 64, DTYPES["bf16"])[kernel]
    return twice(arch, kernel, tile, hot_loops(assembly(compiled)))


def _told(tile) -> str:
    return f"{tile.queries}x{tile.keys}, {tile.warps} warps, {tile.stages} stages"


def check(arch: str, full: bool) -> int:
    """Print a Markdown row per kernel; return how many break a budget."""
    pretend(arch)
    limit = SHARED_KIB[arch] * 1024
    broken = 0
    for label, compile_kernel, tile, may_spill, variant in launches(arch, full):
        start = time.process_time()
        compiled = compile_kernel()
        used = usage(compiled)
        seconds = time.process_time() - start
        wrong = (used.spilled != 0 and not may_spill) or used.shared > limit
        told = _loops_over_budget(arch, label, variant, compiled)
        broken += wrong or bool(told)
        verdict = "OVER BUDGET " * wrong + "; ".join(told) or "ok"
        print(
            f"| {arch} | {label} | {tile} | {used.registers} | {used.spilled} | {used.shared / 1024:.0f} "
            f"| {seconds:.1f} | {verdict} |",
            flush=True,
        )
    return broken


if __name__ == "__main__":
    sys.exit(min(check(sys.argv[1], "--full" in sys.argv[2:]), 100))
