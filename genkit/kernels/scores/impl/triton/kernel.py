"""Triton kernel of block means: one program per (block, batch entry and head)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pool_kernel(
    x, x_batch, x_token, x_head, out, valid, n, block, blocks, heads,
    D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mean of the real tokens of one block: x (B, N, H, D) by its strides, channels dense; out (B, M, H, D) float32,
    contiguous. ``valid`` (M,) int32 counts the real tokens at the front of each block, None = all. Slots behind the
    count are not read; a block without tokens gets 0."""
    number = tl.program_id(0)
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    count = tl.minimum(n - number * block, block)
    if valid is not None:
        count = tl.minimum(count, tl.load(valid + number))
    columns = tl.arange(0, DP)
    line = x + batch.to(tl.int64) * x_batch + head.to(tl.int64) * x_head + number.to(tl.int64) * block * x_token
    total = tl.zeros([TILE, DP], tl.float32)
    for first in tl.range(0, count, TILE):
        rows = first + tl.arange(0, TILE)
        at = line + rows.to(tl.int64)[:, None] * x_token + columns[None, :]
        total += tl.load(at, mask=(rows < count)[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / tl.maximum(count, 1).to(tl.float32)
    target = ((batch.to(tl.int64) * blocks + number) * heads + head) * D
    tl.store(out + target + columns, mean, mask=columns < D)
