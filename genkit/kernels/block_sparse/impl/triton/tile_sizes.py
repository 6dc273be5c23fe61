"""Tile sizes of the Triton kernels by architecture, kernel, head dim and dtype, and how a plan's blocks shrink them.

Every 16-bit entry compiles without register spills and within the shared memory of its target (docs/kernels.md and the
ahead-of-time checks), but for biases and rules read axis by axis on heads of 72, 88, 104 and 120 channels. No entry has
been timed on a device yet; :mod:`genkit.kernels.block_sparse.tuning` measures on the machine at hand and lets its
findings go first.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch

from genkit.kernels.channels import Parts, head_parts, one_part


class Tile(NamedTuple):
    """Queries and keys of one kernel tile, warps per program and pipeline stages. ``specialised``: copies, products and
    the softmax each have warps of their own (the forward pass on :data:`SPECIALISES`); ``warps`` are the softmax's."""

    queries: int
    keys: int
    warps: int
    stages: int
    specialised: bool = False


KERNELS = ("forward", "dq", "dkv")
WIDTHS = (64, 128, 160, 192, 256)
# Columns that a row may have besides, for heads in two parts.
_BETWEEN = (80, 96)

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

# Targets whose copy engine brings the tiles of calls without a distance, and with a bias of rank 1 at most, where
# strides allow it.
BULK = {"sm_90", "sm_100"}
# Where Triton can give the warps of a program different jobs. No device has run such a kernel of ours yet, so none is
# in the table: the tuner tries them, compares what they compute with the others, and takes them where they are faster.
SPECIALISES = {"sm_100"}

# Preferred first; later entries serve plans with smaller query (forward, dq) or key (dkv) blocks. Evaluating a rule
# costs registers, so a kernel may have a row of its own for calls without one ("plain"; for dK/dV grouped heads and
# blocks with invalid queries cost as much as a rule); a rule read axis by axis or a bias costs more still ("heavy", but
# "light" where the copy engine brings the tiles of one of rank 1), most on heads whose rows are no multiple of 16
# channels and have addresses by the element ("uneven"), and so do bit tiles on some ("bits").
_Sizes = dict[str, dict[int, tuple[Tile, ...]]]
_SMALL = (Tile(32, 32, 4, 1), Tile(16, 32, 4, 1))


def _wide(*tiles: Tile) -> dict[int, tuple[Tile, ...]]:
    """The same tiles for all heads wider than 128 channels."""
    return dict.fromkeys((160, 192, 256), tiles)


_WIDE = _wide(Tile(16, 32, 8, 1))

_HEAVY: _Sizes = {
    "dq, heavy": {64: (Tile(32, 64, 8, 1), *_SMALL), 128: (Tile(32, 64, 8, 1), *_SMALL)},
    # Programs of four warps are given 168 registers for some of these calls, and spill.
    "dkv, heavy": {64: (Tile(32, 32, 8, 1), *_SMALL), 128: (Tile(32, 32, 8, 1), *_SMALL)},
}
_HOPPER: _Sizes = _HEAVY | {
    "forward, heavy": dict.fromkeys((64, 128), (Tile(128, 32, 8, 1), Tile(64, 32, 4, 1), *_SMALL)) | _WIDE,
    "dq, heavy": dict.fromkeys((64, 128), (Tile(128, 32, 8, 1), Tile(32, 64, 8, 1), *_SMALL)),
    "dq, quadratic": {128: (Tile(128, 16, 8, 1), Tile(32, 64, 8, 1), *_SMALL)},
    # 32 keys are not for the large matrix unit, whose 64 rows two groups of four warps would both compute.
    "dkv, heavy": dict.fromkeys((64, 128), (Tile(64, 32, 8, 1), *_SMALL)),
    "dkv, uneven": {128: (Tile(32, 32, 8, 1), *_SMALL)},
    "forward": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
    }
    | _wide(Tile(64, 32, 4, 2), Tile(16, 32, 8, 1)),
    "dq": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
    }
    | _WIDE,
    # Eight warps would take the 64 rows of a tile twice, once per group of four.
    "dkv": {64: (Tile(64, 64, 4, 2), *_SMALL), 128: (Tile(32, 64, 4, 2), *_SMALL), **_wide(Tile(16, 16, 8, 1))},
}
# Through the copy engine: no addresses in registers leaves room for larger tiles, which must hold whole blocks.
_HOPPER_BULK: _Sizes = {
    "forward": {
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        160: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)),
        192: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)),
        256: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    },
    "forward, bits": {128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))},
    "dq": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        160: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        192: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        256: (Tile(64, 32, 4, 2),),
    },
    "dkv": {64: (Tile(64, 64, 4, 3),), 128: (Tile(64, 64, 4, 2),), **_wide(Tile(32, 64, 4, 2))},
    "dkv, bits": {256: (Tile(16, 64, 4, 2),)},
    "forward, light": {128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))},
    "dkv, light": {64: (Tile(64, 64, 4, 2),), 128: (Tile(32, 64, 4, 2),)},
}
# A product of 64 rows takes the matrix unit here as long as one of 128. With 128 keys a step the forward pass of 128
# channels would keep a few registers on the stack, outside its loops; blocks of two tiles are walked in pairs instead.
_BLACKWELL_BULK: _Sizes = {
    "forward": {
        64: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        160: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        192: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        256: (Tile(64, 64, 8, 2),),
    },
    "dq": {
        64: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        # Three stages, or four warps with two, spill some of these.
        80: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3)),
        96: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        160: (Tile(128, 64, 8, 2),),
        192: (Tile(128, 64, 8, 2),),
        256: (Tile(64, 64, 4, 2),),
    },
    "dkv": {
        64: (Tile(64, 128, 4, 2), Tile(64, 64, 4, 2)),
        96: (Tile(64, 64, 4, 2),),
        128: (Tile(64, 128, 8, 2), Tile(64, 64, 4, 2)),
        **_wide(Tile(64, 64, 4, 2)),
    },
    # What is added up for the bias would not fit the registers beside 128 keys and four warps.
    "dkv, light": {64: (Tile(64, 64, 4, 2),)},
}
# Here eight warps are the ones that are given too few registers, 128, for some calls.
_BLACKWELL: _Sizes = _HOPPER | {
    "dq": {
        64: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), *_SMALL),
        128: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), *_SMALL),
    }
    | _WIDE,
    "dkv": {64: (Tile(64, 64, 8, 2), *_SMALL), 128: (Tile(32, 64, 8, 2), *_SMALL), **_wide(Tile(16, 16, 8, 1))},
    "dkv, plain": {128: (Tile(64, 64, 8, 2), *_SMALL)},
    "dkv, bits": {128: (Tile(32, 64, 4, 2), *_SMALL)},
    "forward, heavy": {64: (Tile(64, 32, 8, 1), *_SMALL), 128: (Tile(64, 32, 8, 1), *_SMALL)},
    "dq, quadratic": {},
}
# A warp takes 16 rows of a product. Where the output has more columns than rows, the warps lie side by side and must
# have eight columns of the scores each; else they lie below each other.
_AMPERE: _Sizes = _HEAVY | {
    "forward": {
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), *_SMALL),
        128: (Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), *_SMALL),
    }
    | _WIDE
    # Heads in two parts, up to 192 channels, spill in it.
    | {256: (Tile(32, 64, 8, 1), *_WIDE[256])}
    # With 64 rows eight warps would take the scores twice, in heads of two parts too.
    | {96: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), *_SMALL)},
    "forward, plain": {128: (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), *_SMALL)},
    "dq": {64: (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), *_SMALL), 128: (Tile(64, 64, 8, 2), *_SMALL)}
    | _WIDE
    | {96: (Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), *_SMALL), 256: (Tile(32, 64, 8, 1), *_WIDE[256])},
    "dkv": {
        64: (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), *_SMALL),
        80: (Tile(32, 64, 4, 2), *_SMALL, Tile(16, 16, 4, 1)),
        # 16x32 spills for 80 channels and blocks of 48 keys.
        128: (
            Tile(64, 64, 8, 2),
            Tile(64, 32, 8, 2),
            *_SMALL,
            Tile(16, 16, 4, 1),
        ),
        **_wide(Tile(16, 16, 8, 1)),
        256: (Tile(64, 32, 8, 1), Tile(16, 16, 8, 1)),
    },
    "dkv, plain": {
        64: (Tile(64, 128, 8, 2), Tile(32, 64, 4, 2), *_SMALL),
        80: (Tile(32, 64, 4, 2), *_SMALL),
        96: (Tile(32, 64, 8, 2), *_SMALL),
    },
    # Reading bits of masks costs registers that the tiles above leave none of.
    "forward, bits": {64: (Tile(128, 32, 8, 2), *_SMALL)},
    "forward, heavy": {
        64: (Tile(128, 64, 8, 1), Tile(64, 32, 4, 1), *_SMALL),
        128: (Tile(128, 32, 8, 1), Tile(64, 32, 4, 1), *_SMALL),
    }
    | _WIDE,
    "dq, heavy": dict.fromkeys((64, 128), (Tile(32, 64, 8, 1), *_SMALL)) | _WIDE,
    "dkv, heavy": dict.fromkeys((64, 128), (Tile(64, 32, 8, 1), *_SMALL)) | _wide(Tile(16, 16, 8, 1)),
    "dkv, uneven": {128: (Tile(32, 32, 8, 1), *_SMALL)},
    # Without a rule tiles of the row above spill eight bytes at 128 channels, for a bias of low rank.
    "dkv, plain heavy": {
        64: (Tile(64, 32, 4, 1), *_SMALL),
        128: (Tile(64, 16, 4, 1), Tile(32, 16, 4, 1), Tile(16, 16, 4, 1)),
    },
}
# Windows together with grouped heads spill eight bytes in 64x64.
_QUADRATIC: _Sizes = {
    "forward, quadratic": {
        64: (Tile(128, 32, 8, 1), Tile(64, 16, 4, 1), *_SMALL),
        128: (Tile(128, 16, 8, 1), Tile(64, 64, 8, 1), *_SMALL),
    }
}
_ADA: _Sizes = _AMPERE | _QUADRATIC | {"dkv": _AMPERE["dkv"] | {64: (Tile(32, 64, 4, 2), *_SMALL)}}
_BLACKWELL_DESKTOP: _Sizes = (
    _AMPERE
    | _QUADRATIC
    | {
        "dkv, quadratic": {64: _SMALL},
        "dq, bits": {64: (Tile(64, 32, 4, 2), *_SMALL)},
    }
)
# Four wavefronts of 64: eight would halve the registers each may use. A wavefront takes 32 rows of the scores (keys for
# dK/dV); where a tile has fewer than 32 for each, they compute the same scores.
_CDNA: _Sizes = {
    "forward": {
        64: (Tile(128, 64, 4, 2), Tile(64, 64, 2, 2), *_SMALL),
        128: (Tile(128, 32, 4, 2), Tile(64, 32, 2, 2), *_SMALL),
    }
    | _wide(Tile(128, 32, 4, 1), Tile(64, 32, 2, 1), Tile(16, 32, 8, 1)),
    "dq": dict.fromkeys((64, 128), (Tile(128, 32, 4, 2), Tile(64, 32, 2, 2), *_SMALL))
    | _wide(Tile(128, 32, 4, 1), Tile(64, 16, 2, 1), Tile(16, 32, 8, 1))
    # Parts of 128 and 64 channels would spill a register.
    | {192: (Tile(64, 16, 2, 1), Tile(16, 32, 8, 1))},
    "dkv": dict.fromkeys((64, 128), (Tile(32, 128, 4, 1), Tile(32, 64, 2, 1), *_SMALL))
    | _wide(Tile(16, 128, 4, 1), Tile(16, 64, 2, 1), Tile(16, 16, 8, 1))
    | {160: (Tile(16, 64, 2, 1), Tile(16, 16, 8, 1))},
    "dkv, bits": {128: (Tile(16, 128, 4, 1), Tile(16, 64, 2, 1), *_SMALL)},
    "forward, heavy": {
        64: (Tile(128, 64, 4, 1), Tile(64, 32, 2, 1), *_SMALL),
        128: (Tile(128, 32, 4, 1), Tile(64, 32, 2, 1), *_SMALL),
    }
    | _WIDE,
    "dq, heavy": dict.fromkeys((64, 128), (Tile(128, 32, 4, 1), Tile(64, 32, 2, 1), *_SMALL)) | _WIDE,
    "forward, quadratic": {64: (Tile(128, 32, 4, 1), Tile(64, 32, 2, 1), *_SMALL)},
    "dq, quadratic": {128: (Tile(32, 16, 1, 1), *_SMALL)},
    "dkv, heavy": {
        64: (Tile(32, 128, 4, 1), Tile(32, 64, 2, 1), *_SMALL),
        # 16x128 with four wavefronts spills a register for a bias of rank 1.
        128: (Tile(16, 64, 2, 1), Tile(16, 32, 4, 1)),
    }
    | _wide(Tile(16, 16, 8, 1)),
}
_TABLE: dict[str, _Sizes] = {
    "sm_80": _AMPERE,
    "sm_89": _ADA,
    "sm_90": _HOPPER,
    "sm_100": _BLACKWELL,
    "sm_120": _BLACKWELL_DESKTOP,
    "gfx942": _CDNA,
    "gfx950": _CDNA,
}
_BULK_TABLE: dict[str, _Sizes] = {"sm_90": _HOPPER_BULK, "sm_100": _BLACKWELL_BULK}
_FLOAT32 = {64: Tile(32, 32, 4, 1), 128: Tile(32, 32, 8, 1)} | dict.fromkeys((160, 192, 256), Tile(16, 16, 8, 1))
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
    """Column of the table: the least of :data:`WIDTHS` that holds the head."""
    return next(width for width in WIDTHS if dim <= width)


def parts_on(arch: str | None, dim: int, heavy: bool = False) -> Parts:
    """How kernels for an architecture take heads apart; docs/kernels.md has the counts. ``heavy`` as in
    :func:`choose_tile`: such calls have no registers left for a second part's addresses."""
    # Where the matrix unit is fastest, empty lanes of a small head cost less than the second part's instructions.
    return one_part(dim) if heavy or (dim <= 64 and arch in ("sm_90", "sm_100")) else head_parts(dim)


def apart(dim: int) -> bool:
    """Whether dK and dV of a head size are made by a program each: together their accumulators, float32 and as wide as
    the head, would leave no register for the scores of a tile that a matrix unit is fed well with."""
    return dim > 160


def candidates(
    arch: str, kernel: str, dim: int, dtype: torch.dtype, plain: bool = False, heavy: bool = False, bits: bool = False,
    quadratic: bool = False,
) -> tuple[Tile, ...]:  # fmt: skip
    """Tiles of the table, preferred first; see :func:`choose_tile`."""
    if arch == "interpreter":
        return (_INTERPRETER,)
    if dtype == torch.float32:
        return (_FLOAT32[width_class(dim)],)
    sizes, width = _TABLE[arch], width_class(dim)
    kind = " ".join(["plain"] * plain + ["heavy"] * heavy)
    uneven = width == 128 and dim % 16 != 0
    special = [*["quadratic"] * quadratic, *["uneven"] * uneven, "heavy"] if heavy else ["bits"] if bits else []
    # "heavy" alone says less than "quadratic" and "uneven" and comes after them.
    rows = [*(f"{kernel}, {name}" for name in [kind] * plain + special), kernel]
    columns = *_between(arch, dim, heavy), width
    return next(sizes[row][column] for row in rows for column in columns if column in sizes.get(row, {}))


def _between(arch: str | None, dim: int, heavy: bool = False) -> list[int]:
    """Columns of heads in two parts that hold a head."""
    return [column for column in _BETWEEN if 64 < dim <= column and len(parts_on(arch, dim, heavy)) > 1]


def bulk_candidates(
    arch: str | None, kernel: str, dim: int, dtype: torch.dtype, bits: bool = False, light: bool = False
) -> tuple[Tile, ...]:
    """Tiles of the table for calls whose tiles the copy engine brings, preferred first; none where it brings none."""
    sizes, columns = _BULK_TABLE.get(arch or "", {}), (*_between(arch, dim), width_class(dim))
    if dtype == torch.float32 or (light and dim > 128):
        return ()
    rows = [f"{kernel}, light"] * light + [f"{kernel}, bits"] * bits + [kernel]
    return next((sizes[row][column] for row in rows for column in columns if column in sizes.get(row, {})), ())


def bulk_tile(
    arch: str | None, kernel: str, dim: int, dtype: torch.dtype, block_q: int, block_k: int, bits: bool, light: bool
) -> Tile | None:
    """The first tile for the copy engine that a plan's blocks are made of, if any. ``light``: the call has a bias of
    rank 1."""
    for tile in bulk_candidates(arch, kernel, dim, dtype, bits, light):
        if block_q % tile.queries == 0 and block_k % tile.keys == 0:
            return tile
    return None


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
    light: bool = False,
    quadratic: bool = False,
) -> Tile:
    """The tile for a plan: the first of the table that its blocks fill, shrunk to them if none does.

    Args:
        kernel: ``"forward"``, ``"dq"`` or ``"dkv"``.
        block_q, block_k: tokens per block of the plan.
        plain: whether the code is short: no rule decides partial blocks, and for ``"dkv"`` every query head has a key
            head of its own and every query block is whole.
        heavy: whether the rule is read axis by axis (so is one that measures a distance) or the call has a bias. Tuned
            tiles do not serve such calls.
        bits: whether bit tiles decide about partial blocks. Nor do they serve these.
        bulk: whether the copy engine can bring the tiles of this call.
        light: whether the bias that makes it heavy is of rank 1; quadratic: whether it is a quadratic one.
    """
    return _chosen(
        architecture(device), kernel, dim, dtype, block_q, block_k, plain, heavy, bits, bulk, light, quadratic
    )


@lru_cache(maxsize=256)
def _chosen(
    arch: str, kernel: str, dim: int, dtype: torch.dtype, block_q: int, block_k: int, plain: bool, heavy: bool,
    bits: bool, bulk: bool, light: bool, quadratic: bool,
) -> Tile:  # fmt: skip
    measured = None if heavy or bits else _measured.get((arch, kernel, width_class(dim), str(dtype)))
    if bulk and not measured and (tile := bulk_tile(arch, kernel, dim, dtype, block_q, block_k, bits, light)):
        return tile
    options = candidates(arch, kernel, dim, dtype, plain, heavy, bits, quadratic)
    return fit((measured, *options) if measured else options, kernel, block_q, block_k)


def unpipelined(tile: Tile, arch: str | None, kernel: str, aligned: bool) -> Tile:
    """The tile with one stage where Triton 3.9 fails an assertion of its pipeliner otherwise: the forward pass on
    sm_100 with keys and values that no asynchronous copy takes, whose strides are no multiple of 16 elements."""
    return tile._replace(stages=1) if arch == "sm_100" and kernel == "forward" and not aligned else tile


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
    _chosen.cache_clear()
    if tile is None:
        _measured.pop(key, None)
    else:
        _measured[key] = tile
