"""Additive biases inside a tile of the Triton kernels, and what their gradients need."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from genkit.kernels.block_sparse.triton_tile import base

NO_BIAS = tl.constexpr(0)
LOW_RANK = tl.constexpr(1)
QUADRATIC = tl.constexpr(2)


class LowRankTables(NamedTuple):
    """Factors F (queries) and G (keys) as :class:`View` of (B|1, N, H|1, R) float32 tensors."""

    f: Any
    g: Any


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
def factor_rows(x, batch, head, tokens, ok, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """(tokens, WIDTH) rows of a factor, 0 beyond its rank."""
    columns = tl.arange(0, WIDTH)
    at = base(x, batch, head, head * 0) + tokens.to(tl.int64)[:, None] * x.token + columns[None, :]
    return tl.load(at, mask=ok[:, None] & (columns < RANK)[None, :], other=0.0)


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
def tile_bias(
    bias, batch, head, q_tokens, k_tokens, q_ok, k_ok, KIND: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """Bias of one tile in natural-log units, (queries, keys), or (keys, queries) when TURNED.

    SIZE is the rank or the number of axes, WIDTH its padded value. Token vectors are one-dimensional.
    """
    if KIND == LOW_RANK:
        f = factor_rows(bias.f, batch, head, q_tokens, q_ok, SIZE, WIDTH)
        g = factor_rows(bias.g, batch, head, k_tokens, k_ok, SIZE, WIDTH)
        # True float32: a bias of a few hundred logits must not lose its last digits to a shorter format.
        if TURNED:
            return tl.dot(g, tl.trans(f), input_precision="ieee")
        else:
            return tl.dot(f, tl.trans(g), input_precision="ieee")
    else:
        if TURNED:
            q_at, k_at, q_in, k_in = q_tokens[None, :], k_tokens[:, None], q_ok[None, :], k_ok[:, None]
        else:
            q_at, k_at, q_in, k_in = q_tokens[:, None], k_tokens[None, :], q_ok[:, None], k_ok[None, :]
        gain = gains(bias, q_at, k_at, q_in, k_in)
        total = tl.zeros_like(gain)
        for axis in tl.static_range(SIZE):
            weight = tl.load(bias.weight + head * bias.weight_head + axis)
            total += weight * squared_excess(bias, axis, q_at, k_at, q_in, k_in)
        return -gain * total


@triton.jit
def add_query_gradient(
    extra, bias, d_scores, batch, head, q_tokens, k_tokens, q_ok, k_ok, KIND: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Add this tile's share of the gradient that is summed per query: dF, or the part of d weight of each axis."""
    if KIND == LOW_RANK:
        g = factor_rows(bias.g, batch, head, k_tokens, k_ok, SIZE, WIDTH)
        return tl.dot(d_scores, g, extra, input_precision="ieee")
    else:
        q_at, k_at, q_in, k_in = q_tokens[:, None], k_tokens[None, :], q_ok[:, None], k_ok[None, :]
        weighted = -d_scores * gains(bias, q_at, k_at, q_in, k_in)
        columns = tl.arange(0, WIDTH)
        for axis in tl.static_range(SIZE):
            share = tl.sum(weighted * squared_excess(bias, axis, q_at, k_at, q_in, k_in), 1)
            extra += share[:, None] * (columns == axis)[None, :]
        return extra
