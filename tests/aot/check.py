"""Compile the kernels for one target and compare registers, spills and shared memory with the budgets.

Run through ``python -m tests.aot``, which starts one process per target.
"""

from __future__ import annotations

import sys
import time

from genkit.kernels.block_sparse.block_sizes import SHARED_KIB
from genkit.kernels.token_select import triton as selection
from tests.aot.driver import pretend, usage
from tests.aot.variants import BLOCK, DTYPES, block_sparse, names, rare
from tests.aot.variants_select import KERNELS as SELECT_KERNELS
from tests.aot.variants_select import token_select

RARE_TARGET = "sm_90"


def launches(arch: str, full: bool):
    """(label, compile function, tile) of everything to be checked."""
    for kernel, dim, dtype, rule, block in names(arch, full):
        launch = block_sparse(arch, kernel, dim, DTYPES[dtype], rule, block)
        sizes, options = launch.constants, launch.options
        tile = f"{sizes['TILE_Q']}x{sizes.get('TILE_K', '-')}, {options['num_warps']} warps, "
        tile += f"{options['num_stages']} stages"
        notes = f"{' rule' if rule else ''}{'' if block == BLOCK else f' blocks of {block}'}"
        yield f"block_sparse {kernel} D={dim} {dtype}{notes}", launch.compile, tile
    for kernel in SELECT_KERNELS if full else SELECT_KERNELS[:3]:
        for dim in (64, 128) if full else (128,):
            tile = selection.tiles_for(dim, DTYPES["bf16"]).get(kernel)
            text = f"{tile.queries}x{tile.keys}, {tile.warps} warps, {tile.stages} stages" if tile else "rows"
            yield f"token_select {kernel} D={dim} bf16", token_select(kernel, dim, DTYPES["bf16"]), text


def rare_launches(arch: str, full: bool):
    """(label, compile function) of rarely used paths; one target is enough to see that they compile."""
    if full or arch == RARE_TARGET:
        for kernel in ("forward", "dq", "dkv"):
            for label, launch in rare(kernel):
                yield f"block_sparse {kernel}, {label}", launch.compile


def check(arch: str, full: bool) -> int:
    """Print a Markdown row per kernel; return how many break a budget."""
    pretend(arch)
    limit = SHARED_KIB[arch] * 1024
    broken = 0
    for label, compile_kernel, tile in launches(arch, full):
        start = time.process_time()
        used = usage(compile_kernel())
        seconds = time.process_time() - start
        wrong = used.spilled != 0 or used.shared > limit
        broken += wrong
        verdict = "OVER BUDGET" if wrong else "ok"
        print(
            f"| {arch} | {label} | {tile} | {used.registers} | {used.spilled} | {used.shared / 1024:.0f} "
            f"| {seconds:.1f} | {verdict} |",
            flush=True,
        )
    for label, compile_kernel in rare_launches(arch, full):
        start = time.process_time()
        used = usage(compile_kernel())
        wrong = used.shared > limit
        broken += wrong
        verdict = "OVER BUDGET" if wrong else "compiles"
        cells = (arch, label, "-", used.registers, used.spilled, f"{used.shared / 1024:.0f}")
        print("|", " | ".join(map(str, cells)), f"| {time.process_time() - start:.1f} | {verdict} |", flush=True)
    return broken


if __name__ == "__main__":
    sys.exit(min(check(sys.argv[1], "--full" in sys.argv[2:]), 100))
