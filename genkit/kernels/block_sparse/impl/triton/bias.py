"""Additive biases inside a tile of the Triton kernels, and what their gradients need."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.target_info import is_hip

NO_BIAS = tl.constexpr(0)
LOW_RANK = tl.constexpr(1)
QUADRATIC = tl.constexpr(2)
# Ranks up to this are written out in the loop over blocks; more are multiplied by the matrix unit, so many at a time.
UNROLLED = tl.constexpr(4)
STRIP = tl.constexpr(16)


def padded_rank(rank: int) -> int:
    """Columns that kernels keep for the gradient of a factor: a power of two, whole strips where there are any."""
    width = 1 << (rank - 1).bit_length()
    return width if rank <= UNROLLED.value else max(STRIP.value, width)


class Factor(NamedTuple):
    """One side of a low-rank bias, rank-major: (B|1, H|1, R, N) float32, tokens contiguous; strides 0 where shared.

    N is as long as any tile reaches, 0 where there is no token: the kernels read it without asking. A mask in the loop
    would also make Triton 3.9 fail an assertion of its pipeliner, the key block being read a step early."""

    ptr: Any
    batch: Any
    head: Any
    rank: Any


class LowRankTables(NamedTuple):
    """Factors F (queries) and G (keys)."""

    f: Factor
    g: Factor


class QuadraticTables(NamedTuple):
    """Axis-major coordinates (A, N), weights (H|1, A) and their head stride, hinge (A,) and gains (N,), float32."""

    q_pos: Any
    k_pos: Any
    weight: Any
    weight_head: Any
    hinge: Any
    q_gain: Any
    k_gain: Any
    n_q: Any
    n_k: Any


@triton.jit
def factor_line(x, head, rank, tokens):
    """Entries of one rank for the given tokens, in the shape of ``tokens``."""
    line = x.ptr + head.batch.to(tl.int64) * x.batch + head.query.to(tl.int64) * x.head + rank * x.rank
    return tl.load(line + tokens)


@triton.jit
def squared_excess(bias, axis, q_tokens, k_tokens, q_ok, k_ok):
    """max(|distance| - hinge, 0)^2 on one axis; queries and keys as a column and a row."""
    own = tl.load(bias.q_pos + axis * bias.n_q + q_tokens, mask=q_ok, other=0.0)
    other = tl.load(bias.k_pos + axis * bias.n_k + k_tokens, mask=k_ok, other=0.0)
    excess = tl.maximum(tl.abs(own - other) - tl.load(bias.hinge + axis), 0.0)
    return excess * excess


@triton.jit
def gains(bias, q_tokens, k_tokens, q_ok, k_ok):
    """q_gain * k_gain of every pair."""
    own = tl.load(bias.q_gain + q_tokens, mask=q_ok, other=0.0)
    return own * tl.load(bias.k_gain + k_tokens, mask=k_ok, other=0.0)


@triton.jit
def _product(bias, head, rank, q_at, k_at):
    return factor_line(bias.f, head, rank, q_at) * factor_line(bias.g, head, rank, k_at)


@triton.jit
def _factor_tile(x, head, ranks, at, SHAPE: tl.constexpr):
    """Entries of a factor for ranks and tokens, one of them a row, the other a column; 0 from rank SIZE on."""
    line = x.ptr + head.batch.to(tl.int64) * x.batch + head.query.to(tl.int64) * x.head
    if SHAPE.SIZE == SHAPE.WIDTH:
        return tl.load(line + ranks * x.rank + at)
    else:
        return tl.load(line + ranks * x.rank + at, mask=ranks < SHAPE.SIZE, other=0.0)


@triton.jit
def _strip_products(bias, head, q_at, k_at, SHAPE: tl.constexpr):
    """Sum of the products of all ranks by the matrix unit, a strip at a time, so that few factors are in registers.

    A bias of a few hundred logits must not lose its last digits: both factors are taken apart into pieces of a short
    format whose products are added up in float32, 22 bits of each in three products (24 in six where there are only
    bfloat16 pieces)."""
    PRECISION: tl.constexpr = "bf16x6" if is_hip() else "tf32x3"
    if q_at.shape[1] == 1:
        total = tl.zeros([q_at.shape[0], k_at.shape[1]], tl.float32)
        for first in tl.range(0, SHAPE.WIDTH, STRIP, num_stages=1):
            ranks = first + tl.arange(0, STRIP)
            rows = _factor_tile(bias.f, head, ranks[None, :], q_at, SHAPE)
            columns = _factor_tile(bias.g, head, ranks[:, None], k_at, SHAPE)
            total = tl.dot(rows, columns, total, input_precision=PRECISION)
        return total
    else:
        total = tl.zeros([k_at.shape[0], q_at.shape[1]], tl.float32)
        for first in tl.range(0, SHAPE.WIDTH, STRIP, num_stages=1):
            ranks = first + tl.arange(0, STRIP)
            rows = _factor_tile(bias.g, head, ranks[None, :], k_at, SHAPE)
            columns = _factor_tile(bias.f, head, ranks[:, None], q_at, SHAPE)
            total = tl.dot(rows, columns, total, input_precision=PRECISION)
        return total


@triton.jit
def tile_bias(bias, head, q_at, k_at, q_in, k_in, SHAPE: tl.constexpr):
    """Bias of one tile in natural-log units. Queries and keys come as a column and a row, either way round. A short sum
    is written out, so that the loop over blocks stays the innermost one and is pipelined."""
    if SHAPE.BIAS == LOW_RANK:
        if SHAPE.SIZE <= UNROLLED:
            total = _product(bias, head, 0, q_at, k_at)
            for rank in tl.static_range(1, SHAPE.SIZE):
                total += _product(bias, head, rank, q_at, k_at)
            return total
        else:
            return _strip_products(bias, head, q_at, k_at, SHAPE)
    else:
        gain = gains(bias, q_at, k_at, q_in, k_in)
        total = tl.zeros_like(gain)
        for axis in tl.static_range(SHAPE.SIZE):
            weight = tl.load(bias.weight + head.query * bias.weight_head + axis)
            total += weight * squared_excess(bias, axis, q_at, k_at, q_in, k_in)
        return -gain * total


@triton.jit
def add_factor_gradient(extra, x, d_scores, head, at, SHAPE: tl.constexpr):
    """Add this tile's share of the gradient of the factor of its rows: ``d_scores`` times the factor ``x`` of its
    columns, whose tokens ``at`` are a row."""
    if SHAPE.SIZE <= UNROLLED:
        for rank in tl.static_range(SHAPE.SIZE):
            share = tl.sum(d_scores * _finite(factor_line(x, head, rank, at)), 1)
            extra += share[:, None] * (tl.arange(0, SHAPE.WIDTH) == rank)[None, :]
        return extra
    else:
        # Of 16-bit inputs the scores' gradients are rounded for dQ and dK, and here to what is at least eight times
        # as fine; of float32 ones nothing is.
        NVIDIA: tl.constexpr = "tf32x3" if SHAPE.FLOAT32 else "tf32"
        AMD: tl.constexpr = "bf16x6" if SHAPE.FLOAT32 else "bf16x3"
        PRECISION: tl.constexpr = AMD if is_hip() else NVIDIA
        factor = _finite(_factor_tile(x, head, tl.arange(0, SHAPE.WIDTH)[:, None], at, SHAPE))
        return tl.dot(d_scores, tl.trans(factor), extra, input_precision=PRECISION)


@triton.jit
def _finite(factor):
    """Where a factor is infinite the pair has weight 0, and 0 * inf must not become NaN."""
    return tl.where(tl.abs(factor) == float("inf"), 0.0, factor)


@triton.jit
def add_query_gradient(extra, bias, d_scores, head, q_at, k_at, q_in, k_in, SHAPE: tl.constexpr):
    """Add this tile's share of the gradient that is summed per query: dF, or the part of d weight of each axis. Queries
    are a column, keys a row."""
    if SHAPE.BIAS == LOW_RANK:
        return add_factor_gradient(extra, bias.g, d_scores, head, k_at, SHAPE)
    else:
        weighted = -d_scores * gains(bias, q_at, k_at, q_in, k_in)
        columns = tl.arange(0, SHAPE.WIDTH)
        for axis in tl.static_range(SHAPE.SIZE):
            share = tl.sum(weighted * squared_excess(bias, axis, q_at, k_at, q_in, k_in), 1)
            extra += share[:, None] * (columns == axis)[None, :]
        return extra
