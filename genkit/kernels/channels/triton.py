"""Tiles (tokens, channels) of heads in parts, and their products: a tuple with a tensor per part.

``PARTS`` is what :func:`genkit.kernels.channels.head_parts` says of D channels.
"""

# Tuples grow in loops that the compiler unrolls; an annotation inside a kernel would be read by it.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_parts(at, mask, D: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr):
    """Rows from the addresses ``at`` (TILE,) of their first channels; channels beyond D are 0, and with ``MASKED`` so
    are rows outside ``mask`` (TILE,)."""
    tiles = ()
    for part in tl.static_range(len(PARTS)):
        columns = PARTS[part][0] + tl.arange(0, PARTS[part][1])
        place = at[:, None] + columns[None, :]
        if PARTS[part][0] + PARTS[part][1] <= D:
            if MASKED:
                tiles = tiles + (tl.load(place, mask=mask[:, None], other=0.0),)
            else:
                tiles = tiles + (tl.load(place),)
        else:
            if MASKED:
                tiles = tiles + (tl.load(place, mask=mask[:, None] & (columns < D)[None, :], other=0.0),)
            else:
                tiles = tiles + (tl.load(place, mask=(columns < D)[None, :], other=0.0),)
    return tiles


@triton.jit
def store_parts(at, tiles, mask, D: tl.constexpr, PARTS: tl.constexpr):
    """Inverse of :func:`load_parts`, in the type that ``at`` points at."""
    for part in tl.static_range(len(PARTS)):
        columns = PARTS[part][0] + tl.arange(0, PARTS[part][1])
        place = at[:, None] + columns[None, :]
        value = tiles[part].to(at.dtype.element_ty)
        if PARTS[part][0] + PARTS[part][1] <= D:
            tl.store(place, value, mask=mask[:, None])
        else:
            tl.store(place, value, mask=mask[:, None] & (columns < D)[None, :])


@triton.jit
def load_bulk(x, batch, head, start, TILE: tl.constexpr, PARTS: tl.constexpr):
    """Rows of consecutive tokens through tensor descriptors, one per part, which the copy engine executes by itself: no
    address takes a register, and tokens and channels that do not exist come as 0."""
    tiles = ()
    for part in tl.static_range(len(PARTS)):
        tile = x[part].load([batch, start, head, PARTS[part][0]])
        tiles = tiles + (tile.reshape(TILE, PARTS[part][1]),)
    return tiles


@triton.jit
def zero_parts(TILE: tl.constexpr, PARTS: tl.constexpr):
    """Accumulators of TILE rows, float32."""
    tiles = ()
    for part in tl.static_range(len(PARTS)):
        tiles = tiles + (tl.zeros([TILE, PARTS[part][1]], tl.float32),)
    return tiles


@triton.jit
def scale_parts(tiles, factor, PARTS: tl.constexpr):
    """Every part times ``factor``, a number or one that broadcasts."""
    scaled = ()
    for part in tl.static_range(len(PARTS)):
        scaled = scaled + (tiles[part] * factor,)
    return scaled


@triton.jit
def divide_parts(tiles, mass, empty, PARTS: tl.constexpr):
    """Sums over their mass, one per row; 0 in rows that are ``empty``."""
    out = ()
    for part in tl.static_range(len(PARTS)):
        out = out + (tl.where(empty[:, None], 0.0, tiles[part] / tl.where(empty, 1.0, mass)[:, None]),)
    return out


@triton.jit
def dot_channels(rows, columns, PARTS: tl.constexpr):
    """(rows, columns) float32: the scalar products over all channels of two tiles."""
    total = tl.dot(rows[0], tl.trans(columns[0]), input_precision="ieee")
    for part in tl.static_range(1, len(PARTS)):
        total = tl.dot(rows[part], tl.trans(columns[part]), total, input_precision="ieee")
    return total


@triton.jit
def add_products(acc, weights, tiles, PARTS: tl.constexpr):
    """``acc`` + weights (rows, tokens) @ tiles (tokens, channels)."""
    added = ()
    for part in tl.static_range(len(PARTS)):
        added = added + (tl.dot(weights.to(tiles[part].dtype), tiles[part], acc[part], input_precision="ieee"),)
    return added
