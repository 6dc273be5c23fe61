"""Compare registers, spills, shared memory and hot loops of the kernels of one target with the budgets. Numbers are as
recorded where nothing changed that decides them; other kernels are compiled.

Run through ``python -m tests.aot``, which starts one process per target.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection

from genkit.kernels.block_sparse.impl.triton.tile_sizes import SHARED_KIB
from tests.aot import record
from tests.aot.budgets import over_budget, twice
from tests.aot.digest import asking
from tests.aot.driver import pretend
from tests.aot.loops import Loop
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


def _loops_over_budget(arch: str, label: str, variant: Variant | None, loops: list[Loop]) -> list[str]:
    if variant is not None:
        return over_budget(arch, variant, variant.tile(arch), loops)
    operator, kernel, *_ = label.split()
    if operator != "token_select" or kernel not in KERNELS:
        return []
    tile = tiles_on(arch, 128 if "D=128" in label else 64, DTYPES["bf16"])[kernel]
    return twice(arch, kernel, tile, loops)


def _told(tile) -> str:
    return f"{tile.queries}x{tile.keys}, {tile.warps} warps, {tile.stages} stages"


def check(arch: str, flags: Collection[str] = ()) -> int:
    """Print a Markdown row per kernel; return how many break a budget, or are measured otherwise than recorded.

    ``--full``, ``--again`` and ``--record`` as in ``python -m tests.aot``.
    """
    pretend(arch)
    again, keep = "--again" in flags, "--record" in flags
    recorded, reason = ({}, "") if again and keep else record.load(arch)
    if reason:
        print(reason, flush=True)
    limit = SHARED_KIB[arch] * 1024
    broken, asked_for = 0, {}
    for label, ask, tile, may_spill, variant in launches(arch, "--full" in flags):
        start = time.process_time()
        with asking():
            asked = ask()
        known = recorded.get(asked.digest)
        taken = known is not None and not again
        used = known if taken else record.measure(asked)
        seconds = "recorded" if taken else f"{time.process_time() - start:.1f}"
        asked_for[asked.digest] = label, used
        wrong = (used.spilled != 0 and not may_spill) or used.shared > limit
        told = _loops_over_budget(arch, label, variant, used.loops)
        if known not in (None, used):
            told.append(f"recorded otherwise, though nothing that is hashed changed: {known}")
        broken += wrong or bool(told)
        verdict = "OVER BUDGET " * wrong + "; ".join(told) or "ok"
        print(
            f"| {arch} | {label} | {tile} | {used.registers} | {used.spilled} | {used.shared / 1024:.0f} "
            f"| {seconds} | {verdict} |",
            flush=True,
        )
    if keep:
        print(f"{len(asked_for)} kernels recorded in {record.save(arch, asked_for)}", flush=True)
    return broken


if __name__ == "__main__":
    try:
        sys.exit(min(check(sys.argv[1], sys.argv[2:]), 100))
    except record.BadRecord as error:
        sys.exit(str(error))
