"""Additive biases inside a tile of the Triton kernels, and what their gradients need."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

NO_BIAS = tl.constexpr(0)
LOW_RANK = tl.constexpr(1)
QUADRATIC = tl.constexpr(2)
# Ranks up to this are written out in the loop over blocks.
UNROLLED = tl.constexpr(4)


class Factor(NamedTuple):
    """One side of a low-rank bias, rank-major: (B|1, H|1, R, N) float32, tokens contiguous; strides 0 where shared."""

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
def factor_line(x, head, rank, tokens, ok):
    """Entries of one rank for the given tokens, in the shape of ``tokens``."""
    line = x.ptr + head.batch.to(tl.int64) * x.batch + head.query.to(tl.int64) * x.head + rank * x.rank
    return tl.load(line + tokens, mask=ok, other=0.0)


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
def _add_product(total, bias, head, rank, q_at, k_at, q_in, k_in):
    return total + factor_line(bias.f, head, rank, q_at, q_in) * factor_line(bias.g, head, rank, k_at, k_in)


@triton.jit
def tile_bias(bias, head, q_at, k_at, q_in, k_in, KIND: tl.constexpr, SIZE: tl.constexpr):
    """Bias of one tile in natural-log units. Queries and keys come as a column and a row, either way round.

    SIZE is the rank or the number of axes. A low rank is summed product by product, not by a matrix unit: a bias of a
    few hundred logits must not lose its last digits to a shorter format, and a float32 matrix product would keep WIDTH
    entries of both factors in registers for every row and column.
    """
    if KIND == LOW_RANK:
        total = tl.zeros_like((q_in & k_in).to(tl.float32))
        # A short sum is unrolled, so that the loop over blocks stays the innermost one and is pipelined.
        if SIZE <= UNROLLED:
            for rank in tl.static_range(SIZE):
                total = _add_product(total, bias, head, rank, q_at, k_at, q_in, k_in)
        else:
            for rank in tl.range(0, SIZE, num_stages=1):
                total = _add_product(total, bias, head, rank, q_at, k_at, q_in, k_in)
        return total
    else:
        gain = gains(bias, q_at, k_at, q_in, k_in)
        total = tl.zeros_like(gain)
        for axis in tl.static_range(SIZE):
            weight = tl.load(bias.weight + head.query * bias.weight_head + axis)
            total += weight * squared_excess(bias, axis, q_at, k_at, q_in, k_in)
        return -gain * total


@triton.jit
def _add_share(extra, x, d_scores, head, rank, at, ok, WIDTH: tl.constexpr):
    factor = factor_line(x, head, rank, at, ok)
    # where a factor is infinite the pair has weight 0, and 0 * inf must not become NaN
    share = tl.sum(d_scores * tl.where(tl.abs(factor) == float("inf"), 0.0, factor), 1)
    return extra + share[:, None] * (tl.arange(0, WIDTH) == rank)[None, :]


@triton.jit
def add_factor_gradient(extra, x, d_scores, head, at, ok, SHAPE: tl.constexpr):
    """Add this tile's share of the gradient of the factor of its rows: ``d_scores`` times the factor ``x`` of its
    columns, whose tokens ``at`` and validity ``ok`` are rows."""
    if SHAPE.SIZE <= UNROLLED:
        for rank in tl.static_range(SHAPE.SIZE):
            extra = _add_share(extra, x, d_scores, head, rank, at, ok, SHAPE.WIDTH)
    else:
        for rank in tl.range(0, SHAPE.SIZE, num_stages=1):
            extra = _add_share(extra, x, d_scores, head, rank, at, ok, SHAPE.WIDTH)
    return extra


@triton.jit
def add_query_gradient(extra, bias, d_scores, head, q_at, k_at, q_in, k_in, SHAPE: tl.constexpr):
    """Add this tile's share of the gradient that is summed per query: dF, or the part of d weight of each axis. Queries
    are a column, keys a row."""
    if SHAPE.BIAS == LOW_RANK:
        return add_factor_gradient(extra, bias.g, d_scores, head, k_at, k_in, SHAPE)
    else:
        weighted = -d_scores * gains(bias, q_at, k_at, q_in, k_in)
        columns = tl.arange(0, SHAPE.WIDTH)
        for axis in tl.static_range(SHAPE.SIZE):
            share = tl.sum(weighted * squared_excess(bias, axis, q_at, k_at, q_in, k_in), 1)
            extra += share[:, None] * (columns == axis)[None, :]
        return extra
