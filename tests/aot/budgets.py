"""What a step of a block-sparse kernel may cost: budgets for its hot loops, beside those for registers and memory."""

from __future__ import annotations

from typing import Any

from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile
from tests.aot.loops import Loop
from tests.aot.variants import BLOCK, PAIRS, Variant

#: Instructions times warps per 1,024 scores of the loop over full blocks, by target and kernel, at 64 and 128 channels.
FULL = {
    ("sm_90", "forward"): 300,
    ("sm_90", "dq"): 350,
    ("sm_90", "dkv"): 450,
    ("sm_100", "forward"): 300,
    ("sm_100", "dq"): 350,
    ("sm_100", "dkv"): 450,
}
#: A block whose pairs are decided one by one, against a full one, which takes fewer on sm_100 than elsewhere.
MIXED = {
    ("sm_90", "forward"): 1.8,
    ("sm_90", "dq"): 1.95,
    ("sm_90", "dkv"): 1.6,
    ("sm_100", "forward"): 2.2,
    ("sm_100", "dq"): 1.95,
    ("sm_100", "dkv"): 1.95,
}
#: The same with a bias of rank 1, whose gradient dQ and dK/dV add up too.
FULL_BIASED = {
    ("sm_90", "forward"): 400,
    ("sm_90", "dq"): 600,
    ("sm_90", "dkv"): 900,
    ("sm_100", "forward"): 450,
    ("sm_100", "dq"): 650,
    ("sm_100", "dkv"): 750,
}
#: Exponentials per score of what the copy engine brings: none twice. The forward pass takes one more per row and step.
EXPONENTIALS = {"forward": 1.07, "dq": 1.0, "dkv": 1.0}


#: The same of other calls. Where warps lie side by side each of them takes the forward pass's one more per row.
MOST_EXPONENTIALS = {"forward": 1.5, "dq": 1.0, "dkv": 1.0}


def over_budget(arch: str, variant: Variant, tile: Tile, loops: list[Loop]) -> list[str]:
    """What breaks a budget, in words. Variants whose tiles the copy engine brings, in blocks of full size, have one;
    others must compute no score twice."""
    limit = (FULL_BIASED if variant.light else FULL).get((arch, variant.kernel))
    usual = variant.dim in (64, 128) and variant.block == (BLOCK, BLOCK) and variant.dtype != "fp32"
    if not usual or variant.specialised:
        return []
    if limit is None or not variant.copies(arch) or (variant.heavy and not variant.light):
        return twice(arch, variant.kernel, tile, loops)
    if len(loops) != len(variant.loops(arch)):
        return [f"{len(loops)} loops multiply, expected {', '.join(variant.loops(arch))}"]
    names = variant.loops(arch)
    scores = [tile.queries * tile.keys * (2 if name == PAIRS else 1) for name in names]
    slots = [loop.slots(tile.warps, number) for loop, number in zip(loops, scores, strict=True)]
    wrong = [f"full blocks: {slots[0]:.0f} instructions, allowed {limit}"] * (slots[0] > limit)
    ratio = slots[-1] / slots[0]
    wrong += [f"mixed blocks: {ratio:.2f} times a full one"] * (ratio > MIXED[arch, variant.kernel])
    for name, loop, number in zip(names, loops, scores, strict=True):
        each = loop.exponentials_per_score(32 * tile.warps, number)
        wrong += [f"{name}: {each:.2f} exponentials per score"] * (each > EXPONENTIALS[variant.kernel])
        wrong += [f"{name}: tiles do not come through the copy engine"] * (not loop.bulk)
        wrong += [f"{name}: {loop.fences} fences"] * (loop.fences > 0)
        wrong += [f"{name}: {loop.stack} instructions reach for spilled registers"] * (loop.stack > 0)
    return wrong


def twice(arch: str, kernel: str, tile: Any, loops: list[Loop]) -> list[str]:
    """Loops that take more exponentials than there are scores. Warps have 64 lanes on AMD's targets."""
    threads = tile.warps * (64 if arch.startswith("gfx") else 32)
    each = [loop.exponentials_per_score(threads, tile.queries * tile.keys) for loop in loops]
    return [f"{number:.2f} exponentials per score" for number in each if number > MOST_EXPONENTIALS[kernel]]
