"""A plain dense flash-attention forward pass in Triton, which the static tables hold the block-sparse one against: no
lists, no masks, whole tiles of keys one behind the other."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from genkit.kernels.block_sparse.impl.triton.tile_sizes import BULK, Tile

LENGTH, HEADS = 1024, 4
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dense_kernel(
    q, k, v, bulk_k, bulk_v, out, scale, length, row, step,
    D: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``out`` (B, N, H, D) of one query tile of one head, N a multiple of both tiles. ``step`` is the stride of a token
    and ``row`` that of a batch entry; ``bulk_k`` and ``bulk_v`` are tensor descriptors, or None for addresses."""
    batch, head = tl.program_id(1), tl.program_id(2)
    start = tl.program_id(0) * TILE_Q
    columns = tl.arange(0, D)
    first = batch.to(tl.int64) * row + head * D
    own = first + (start + tl.arange(0, TILE_Q))[:, None] * step + columns[None, :]
    queries = tl.load(q + own)
    most = tl.full([TILE_Q], -float("inf"), tl.float32)
    mass = tl.zeros([TILE_Q], tl.float32)
    acc = tl.zeros([TILE_Q, D], tl.float32)
    factor = scale * LOG2E
    for at in tl.range(0, length, TILE_K, num_stages=STAGES):
        place = first + (at + tl.arange(0, TILE_K))[:, None] * step + columns[None, :]
        if bulk_k is None:
            keys = tl.load(k + place)
        else:
            keys = bulk_k.load([batch, at, head, 0]).reshape(TILE_K, D)
        scores = tl.dot(queries, tl.trans(keys))
        higher = tl.maximum(most, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - higher[:, None])
        shrink = tl.exp2(most - higher)
        mass = mass * shrink + tl.sum(weights, 1)
        if bulk_v is None:
            values = tl.load(v + place)
        else:
            values = bulk_v.load([batch, at, head, 0]).reshape(TILE_K, D)
        acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
        most = higher
    tl.store(out + own, (acc / mass[:, None]).to(queries.dtype))


def tile(arch: str, dim: int) -> Tile:
    """What Triton's own tutorial takes, and without TMA tiles that fit the memory of every target."""
    if arch in BULK:
        return Tile(128, 128 if arch == "sm_90" or dim == 64 else 64, 8, 3 if arch == "sm_90" else 2)
    return Tile(64, 64, 4, 2) if arch.startswith("gfx") else Tile(128, 64, 8, 2)


def compile_dense(arch: str, dim: int):
    """The compiled kernel for bf16."""
    size = tile(arch, dim)
    x = torch.zeros(1, LENGTH, HEADS, dim, dtype=torch.bfloat16)
    bulk = TensorDescriptor(x, list(x.shape), list(x.stride()), [1, size.keys, 1, dim]) if arch in BULK else None
    given = x, x, x, bulk, bulk, x, 0.1, LENGTH, x.stride(0), x.stride(1)
    shape = {"D": dim, "TILE_Q": size.queries, "TILE_K": size.keys, "STAGES": size.stages}
    return dense_kernel.warmup(*given, grid=(1, 1, HEADS), num_warps=size.warps, num_stages=size.stages, **shape)
