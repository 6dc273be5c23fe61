"""Tile sizes of the Triton kernels by architecture, kernel, head dim and dtype, and how a plan's blocks shrink them.

Every 16-bit entry compiles without register spills and within the shared memory of its target (docs/kernels.md and the
ahead-of-time checks). No entry has been timed on a device yet; :mod:`genkit.kernels.block_sparse.tuning` measures on
the machine at hand and lets its findings go first.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Queries and keys of one kernel tile, warps per program and pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


KERNELS = ("forward", "dq", "dkv")

# Shared memory one block may use, KiB.
SHARED_KIB = {
    "sm_80": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
    "gfx942": 64,
    "gfx950": 160,
}

# Targets whose copy engine brings the tiles of calls without a bias or a distance, where strides allow it.
BULK = {"sm_90"}

# Preferred first; later entries serve plans with smaller query (forward, dq) or key (dkv) blocks. Evaluating a rule
# costs registers, so a kernel may have a row of its own for calls without one ("plain"; for dK/dV grouped heads and
# blocks with invalid queries cost as much as a rule); a distance or a bias costs more still ("heavy"), and so do bit
# tiles on some ("bits").
_Sizes = dict[str, dict[int, tuple[Tile, ...]]]
_SMALL = (Tile(32, 32, 4, 1), Tile(16, 32, 4, 1))
_WIDE = {256: (Tile(16, 32, 8, 1),)}

_HEAVY: _Sizes = {
    "forward, heavy": {64: (Tile(64, 64, 8, 1), *_SMALL), 128: (Tile(64, 64, 8, 1), *_SMALL)},
    "dq, heavy": {64: (Tile(32, 64, 8, 1), *_SMALL), 128: (Tile(32, 64, 8, 1), *_SMALL)},
    # Programs of four warps are given 168 registers for some of these calls, and spill.
    "dkv, heavy": {64: (Tile(32, 32, 8, 1), *_SMALL), 128: (Tile(32, 32, 8, 1), *_SMALL)},
}
_HOPPER: _Sizes = _HEAVY | {
    "forward, heavy": {64: (Tile(64, 32, 4, 1), *_SMALL), 128: (Tile(64, 32, 4, 1), *_SMALL)},
    "forward": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
    }
    | _WIDE,
    "dq": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
    }
    | _WIDE,
    # Eight warps would take the 64 rows of a tile twice, once per group of four.
    "dkv": {64: (Tile(64, 64, 4, 2), *_SMALL), 128: (Tile(32, 64, 4, 2), *_SMALL), 256: (Tile(16, 16, 8, 1),)},
}
# Through the copy engine: no addresses in registers leaves room for larger tiles, which must hold whole blocks.
_HOPPER_BULK: _Sizes = {
    "forward": {
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    },
    "forward, bits": {128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))},
    "dq": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    },
    "dkv": {64: (Tile(64, 64, 4, 3),), 128: (Tile(64, 64, 4, 2),)},
}
# Here eight warps are the ones that are given too few registers, 128, for some calls.
_BLACKWELL: _Sizes = _HOPPER | {
    "dq": {
        64: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), *_SMALL),
    }
    | _WIDE,
    "dkv": {64: (Tile(64, 64, 8, 2), *_SMALL), 128: (Tile(32, 64, 8, 2), *_SMALL), 256: (Tile(16, 16, 8, 1),)},
    "dkv, plain": {128: (Tile(64, 64, 8, 2), *_SMALL)},
    "dkv, bits": {128: (Tile(32, 64, 4, 2), *_SMALL)},
    "forward, heavy": {64: (Tile(64, 32, 8, 1), *_SMALL), 128: (Tile(64, 32, 8, 1), *_SMALL)},
    # and four warps with one stage, for a quadratic bias without a rule
    "dkv, heavy": {64: (Tile(32, 32, 4, 2), *_SMALL), 128: _SMALL},
}
_AMPERE: _Sizes = _HEAVY | {
    "forward": {64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL), 128: (Tile(64, 64, 8, 2), *_SMALL)} | _WIDE,
    "forward, plain": {128: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), *_SMALL)},
    "dq": {64: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), *_SMALL), 128: (Tile(64, 64, 8, 2), *_SMALL)} | _WIDE,
    "dkv": {
        64: (Tile(32, 64, 8, 2), *_SMALL),
        128: (Tile(32, 64, 8, 2), *_SMALL, Tile(16, 16, 4, 1)),  # 16x32 spills for 80 channels and blocks of 48 keys
        256: (Tile(16, 16, 8, 1),),
    },
    "dkv, plain": {
        64: (Tile(64, 128, 8, 2), Tile(32, 64, 4, 2), *_SMALL),
        128: (Tile(64, 64, 8, 2), *_SMALL),
    },
    # Reading bits of masks costs registers that the tiles above leave none of.
    "forward, bits": {64: (Tile(128, 32, 8, 2), *_SMALL)},
    "dkv, bits": {64: (Tile(32, 32, 4, 2), *_SMALL)},
    # Without a rule it is eight warps that spill, for a bias of low rank.
    "dkv, plain heavy": {64: _SMALL},
}
_BLACKWELL_DESKTOP: _Sizes = _AMPERE | {
    "dkv, heavy": {64: (Tile(16, 32, 8, 1),), 128: (Tile(32, 32, 8, 1), *_SMALL)},
    "dq, bits": {64: (Tile(64, 32, 4, 2), *_SMALL)},
}
# Four wavefronts of 64: eight would halve the registers each may use.
_CDNA: _Sizes = {
    "forward": {64: (Tile(64, 64, 4, 2), *_SMALL), 128: (Tile(128, 32, 4, 2), Tile(64, 32, 4, 2), *_SMALL)} | _WIDE,
    "dq": {64: (Tile(64, 64, 4, 2), *_SMALL), 128: (Tile(64, 32, 4, 2), *_SMALL)} | _WIDE,
    "dkv": {64: (Tile(32, 64, 4, 1), *_SMALL), 128: (Tile(32, 64, 4, 1), *_SMALL), 256: (Tile(16, 16, 8, 1),)},
    "dkv, plain": {64: (Tile(32, 64, 4, 2), *_SMALL)},
    "forward, heavy": {64: (Tile(64, 32, 4, 1), *_SMALL), 128: (Tile(64, 32, 4, 1), *_SMALL)},
    "dq, heavy": {64: _SMALL, 128: _SMALL},
    "dkv, heavy": {64: _SMALL, 128: (Tile(16, 32, 4, 1),)},
}
_TABLE: dict[str, _Sizes] = {
    "sm_80": _AMPERE,
    "sm_89": _AMPERE,
    "sm_90": _HOPPER,
    "sm_100": _BLACKWELL,
    "sm_120": _BLACKWELL_DESKTOP,
    "gfx942": _CDNA,
    "gfx950": _CDNA,
}
_BULK_TABLE: dict[str, _Sizes] = {"sm_90": _HOPPER_BULK}
_FLOAT32 = {64: Tile(32, 32, 4, 1), 128: Tile(32, 32, 8, 1), 256: Tile(16, 16, 8, 1)}
# In the interpreter a tile costs the same whatever its size.
_INTERPRETER = Tile(64, 64, 4, 1)


def architecture(device: torch.device) -> str | None:
    """Row of the table for a device: ``"sm_90"``, ``"gfx942"``, ``"interpreter"`` for a CPU, None when too old."""
    return "interpreter" if device.type == "cpu" else _architecture(device.index or 0)


def copies(device: torch.device) -> bool:
    """Whether kernels for a device copy tiles through tensor descriptors."""
    return architecture(device) in BULK


@cache
def _architecture(index: int) -> str | None:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return name if name in _TABLE else "gfx942" if name.startswith("gfx9") else None
    major, minor = torch.cuda.get_device_capability(index)
    known = sorted((int(name[3:]), name) for name in _TABLE if name.startswith("sm_"))
    # A newer device runs with the sizes of the nearest older one.
    return next((name for number, name in reversed(known) if number <= 10 * major + minor), None)


def width_class(dim: int) -> int:
    """Column of the table: 64, 128 or 256."""
    return 64 if dim <= 64 else 128 if dim <= 128 else 256


def candidates(
    arch: str, kernel: str, dim: int, dtype: torch.dtype, plain: bool = False, heavy: bool = False, bits: bool = False
) -> tuple[Tile, ...]:
    """Tiles of the table, preferred first; see :func:`choose_tile`."""
    if arch == "interpreter":
        return (_INTERPRETER,)
    if dtype == torch.float32:
        return (_FLOAT32[width_class(dim)],)
    sizes, width = _TABLE[arch], width_class(dim)
    kind = " ".join(["plain"] * plain + ["heavy"] * heavy)
    special = ["heavy"] if heavy else ["bits"] if bits else []
    rows = [f"{kernel}, {kind}", *(f"{kernel}, {name}" for name in special), kernel]
    return next(sizes[row][width] for row in rows if width in sizes.get(row, {}))


def bulk_candidates(
    arch: str | None, kernel: str, dim: int, dtype: torch.dtype, bits: bool = False
) -> tuple[Tile, ...]:
    """Tiles of the table for calls whose tiles the copy engine brings, preferred first; none where it brings none."""
    sizes, width = _BULK_TABLE.get(arch or "", {}), width_class(dim)
    if dtype == torch.float32:
        return ()
    rows = [f"{kernel}, bits"] * bits + [kernel]
    return next((sizes[row][width] for row in rows if width in sizes.get(row, {})), ())


_measured: dict[tuple[str, str, int, str], Tile] = {}


def choose_tile(
    kernel: str,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    block_q: int,
    block_k: int,
    plain: bool = False,
    heavy: bool = False,
    bits: bool = False,
    bulk: bool = False,
) -> Tile:
    """The tile for a plan: the first of the table that its blocks fill, shrunk to them if none does.

    Args:
        kernel: ``"forward"``, ``"dq"`` or ``"dkv"``.
        block_q, block_k: tokens per block of the plan.
        plain: whether the code is short: no rule decides partial blocks, and for ``"dkv"`` every query head has a key
            head of its own and every query block is whole.
        heavy: whether the rule measures a distance or the call has a bias. Tuned tiles do not serve such calls.
        bits: whether bit tiles decide about partial blocks. Nor do they serve these.
        bulk: whether the copy engine can bring the tiles of this call.
    """
    arch = architecture(device)
    measured = None if heavy or bits else _measured.get((arch, kernel, width_class(dim), str(dtype)))
    if bulk and not measured:
        for tile in bulk_candidates(arch, kernel, dim, dtype, bits):
            if block_q % tile.queries == 0 and block_k % tile.keys == 0:
                return tile
    options = candidates(arch, kernel, dim, dtype, plain, heavy, bits)
    return fit((measured, *options) if measured else options, kernel, block_q, block_k)


def fit(options: tuple[Tile, ...], kernel: str, block_q: int, block_k: int) -> Tile:
    """The first tile that divides the plan's blocks on the side a program owns, else the last one shrunk to them."""
    for tile in options:
        own, block = (tile.keys, block_k) if kernel == "dkv" else (tile.queries, block_q)
        if block % own == 0:
            break
    queries = _shrink(tile.queries, block_q)
    # Forward and dQ pack several small key blocks into one tile.
    packs = kernel != "dkv" and block_k < tile.keys and tile.keys % block_k == 0
    return tile._replace(queries=queries, keys=tile.keys if packs else _shrink(tile.keys, block_k))


def _shrink(tile: int, block: int) -> int:
    """The largest size down from ``tile`` that wastes little of a block; 16 is the least a matrix unit takes."""
    while tile > 16 and (tile >= 2 * block or (tile > 32 and block % tile)):
        tile //= 2
    return tile


def prefer(arch: str, kernel: str, dim: int, dtype: torch.dtype, tile: Tile | None) -> None:
    """Put a measured tile before the table for this process; None forgets it."""
    key = (arch, kernel, width_class(dim), str(dtype))
    if tile is None:
        _measured.pop(key, None)
    else:
        _measured[key] = tile
