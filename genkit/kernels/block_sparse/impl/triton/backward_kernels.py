"""Backward Triton kernels of the block-sparse operator. No atomics: dQ walks the row lists, dK and dV their inverse.

With P the weights and dO, dL the incoming gradients of out and lse:
    dS = P * (dO V^T - delta),  delta = rowsum(dO * O) - dL,  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.block_sparse.impl.triton.bias import (
    LOW_RANK,
    add_factor_gradient,
    add_query_gradient,
    tile_bias,
)
from genkit.kernels.block_sparse.impl.triton.tile import (
    LOG2E,
    base,
    list_row,
    load_keys,
    load_tile,
    locate,
    store_tile,
    tile_count,
    visible,
)


@triton.jit
def prepare_kernel(
    out, d_out, lse, d_lse, delta, exponent, n_q, heads,
    D: tl.constexpr, DP: tl.constexpr, TILE_Q: tl.constexpr,
):  # fmt: skip
    """delta and the base-2 lse of every row; rows that saw nothing get +inf, which makes all their weights 0."""
    start = tl.program_id(0) * TILE_Q
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    rows = start + tl.arange(0, TILE_Q)
    ok = rows < n_q
    o = load_tile(base(out, batch, head, start), out.token, ok, TILE_Q, D, DP, True).to(tl.float32)
    g = load_tile(base(d_out, batch, head, start), d_out.token, ok, TILE_Q, D, DP, True).to(tl.float32)
    at = tl.program_id(1).to(tl.int64) * n_q + rows
    total = tl.load(lse + at, mask=ok, other=-float("inf"))
    row = tl.sum(o * g, 1)
    if d_lse is not None:
        row -= tl.load(d_lse + at, mask=ok, other=0.0)
    unseen = total == -float("inf")
    tl.store(delta + at, tl.where(unseen, 0.0, row), mask=ok)
    tl.store(exponent + at, tl.where(unseen, float("inf"), total * LOG2E), mask=ok)


@triton.jit
def _visit_keys(
    q_tile, d_tile, k, v, bias, rule, entries, count, valid, row_exponent, row_delta, acc, extra, q_tokens, row_ok,
    batch, head, kv_head, factor,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_K: tl.constexpr, TILE_K: tl.constexpr, AXES: tl.constexpr,
    BIAS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks for dQ."""
    MASKED: tl.constexpr = PARTIAL or BLOCK_K % TILE_K != 0
    for step in tl.range(0, tile_count(count, BLOCK_K, TILE_K), num_stages=STAGES):
        first, offset, k_ok = locate(entries, count, step, valid, BLOCK_K, TILE_K, PARTIAL)
        k_tile = load_keys(k, batch, kv_head, first, offset, k_ok, BLOCK_K, TILE_K, D, DP, MASKED)
        v_tile = load_keys(v, batch, kv_head, first, offset, k_ok, BLOCK_K, TILE_K, D, DP, MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (q_tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        if BIAS:
            scores += LOG2E * tile_bias(bias, batch, head, own, other, row_ok[:, None], k_ok[None, :], BIAS, SIZE)
        weights = tl.exp2(scores - row_exponent[:, None])
        if PARTIAL:
            seen = visible(rule, batch, own, other, row_ok[:, None], k_ok[None, :], AXES)
            weights = tl.where(seen, weights, 0.0)
        elif MASKED:
            weights = tl.where(k_ok[None, :], weights, 0.0)
        d_weights = tl.dot(d_tile, tl.trans(v_tile), input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = tl.dot(d_scores.to(k_tile.dtype), k_tile, acc, input_precision="ieee")
        if BIAS:
            extra = add_query_gradient(
                extra, bias, d_scores, batch, head, own, other, row_ok[:, None], k_ok[None, :], BIAS, SIZE, WIDTH
            )
    return acc, extra


@triton.jit
def dq_kernel(
    q, k, v, d_out, dq, d_extra, delta, exponent, lists, tokens, rule, bias, scale, heads, group,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr, AXES: tl.constexpr, BIAS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """dQ, and with a bias its per-query gradient ``d_extra`` (B, H, Nq, WIDTH) float32."""
    SUB_Q: tl.constexpr = (BLOCK_Q + TILE_Q - 1) // TILE_Q
    block = tl.program_id(0) // SUB_Q
    part = tl.program_id(0) % SUB_Q
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads

    start_q = block * BLOCK_Q + part * TILE_Q
    slot_q = part * TILE_Q + tl.arange(0, TILE_Q)
    row_ok = slot_q < tl.load(tokens.q_valid + block)
    q_tokens = start_q + tl.arange(0, TILE_Q)
    q_tile = load_tile(base(q, batch, head, start_q), q.token, row_ok, TILE_Q, D, DP, True)
    d_tile = load_tile(base(d_out, batch, head, start_q), d_out.token, row_ok, TILE_Q, D, DP, True)
    at = tl.program_id(1).to(tl.int64) * tokens.n_q + q_tokens
    row_delta = tl.load(delta + at, mask=row_ok, other=0.0)
    row_exponent = tl.load(exponent + at, mask=row_ok, other=float("inf"))
    acc = tl.zeros([TILE_Q, DP], tl.float32)
    extra = tl.zeros([TILE_Q, WIDTH], tl.float32)
    factor = scale * LOG2E
    row = list_row(lists, batch, head, block)
    acc, extra = _visit_keys(
        q_tile, d_tile, k, v, bias, rule, lists.full_index + row * lists.full_width,
        tl.load(lists.full_count + row), tokens.k_valid, row_exponent, row_delta, acc, extra, q_tokens, row_ok, batch,
        head, head // group, factor, D, DP, BLOCK_K, TILE_K, AXES, BIAS, SIZE, WIDTH, STAGES, False,
    )  # fmt: skip
    if lists.part_count is not None:
        acc, extra = _visit_keys(
            q_tile, d_tile, k, v, bias, rule, lists.part_index + row * lists.part_width,
            tl.load(lists.part_count + row), tokens.k_valid, row_exponent, row_delta, acc, extra, q_tokens, row_ok,
            batch, head, head // group, factor, D, DP, BLOCK_K, TILE_K, AXES, BIAS, SIZE, WIDTH, STAGES, True,
        )  # fmt: skip

    inside = (slot_q < BLOCK_Q) & (q_tokens < tokens.n_q)
    store_tile(base(dq, batch, head, start_q), dq.token, acc * scale, inside, TILE_Q, D, DP)
    if BIAS:
        columns = tl.arange(0, WIDTH)
        tl.store(d_extra + at[:, None] * WIDTH + columns[None, :], extra, mask=inside[:, None])


@triton.jit
def _visit_queries(
    q, d_out, delta, exponent, tokens, bias, rule, entries, count, k_tile, v_tile, acc_k, acc_v, extra, k_tokens, k_ok,
    batch, head, heads, factor,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_Q: tl.constexpr, TILE_Q: tl.constexpr, AXES: tl.constexpr,
    BIAS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, EVEN_Q: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one inverse list for dK and dV. Scores are kept turned, (keys, queries), so that no tile is transposed."""
    SUB_Q: tl.constexpr = (BLOCK_Q + TILE_Q - 1) // TILE_Q
    line = (batch * heads + head).to(tl.int64) * tokens.n_q
    for step in tl.range(0, count * SUB_Q, num_stages=STAGES):
        block = tl.load(entries + step // SUB_Q)
        start_q = block * BLOCK_Q + (step % SUB_Q) * TILE_Q
        slot_q = (step % SUB_Q) * TILE_Q + tl.arange(0, TILE_Q)
        q_tokens = start_q + tl.arange(0, TILE_Q)
        if EVEN_Q:
            row_ok = slot_q < BLOCK_Q
            row_exponent = tl.load(exponent + line + q_tokens)
            row_delta = tl.load(delta + line + q_tokens)
        else:
            row_ok = slot_q < tl.load(tokens.q_valid + block)
            row_exponent = tl.load(exponent + line + q_tokens, mask=row_ok, other=float("inf"))
            row_delta = tl.load(delta + line + q_tokens, mask=row_ok, other=0.0)
        q_tile = load_tile(base(q, batch, head, start_q), q.token, row_ok, TILE_Q, D, DP, not EVEN_Q)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * factor
        # `block >> 31` is 0, but only known in the loop: else the key side's tables would be kept in registers.
        own = (k_tokens + (block >> 31))[:, None]
        other = q_tokens[None, :]
        if BIAS:
            scores += LOG2E * tile_bias(bias, batch, head, other, own, row_ok[None, :], k_ok[:, None], BIAS, SIZE)
        weights = tl.exp2(scores - row_exponent[None, :])
        if PARTIAL:
            seen = visible(rule, batch, other, own, row_ok[None, :], k_ok[:, None], AXES)
            weights = tl.where(seen, weights, 0.0)
        d_tile = load_tile(base(d_out, batch, head, start_q), d_out.token, row_ok, TILE_Q, D, DP, not EVEN_Q)
        acc_v = tl.dot(weights.to(d_tile.dtype), d_tile, acc_v, input_precision="ieee")
        d_weights = tl.dot(v_tile, tl.trans(d_tile), input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[None, :])
        acc_k = tl.dot(d_scores.to(q_tile.dtype), q_tile, acc_k, input_precision="ieee")
        if BIAS == LOW_RANK:
            extra = add_factor_gradient(extra, bias.f, batch, head, d_scores, other, row_ok[None, :], SIZE, WIDTH)
    return acc_k, acc_v, extra


@triton.jit
def dkv_kernel(
    q, k, v, d_out, dk, dv, d_extra, delta, exponent, lists, tokens, rule, bias, scale, heads, group,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr, AXES: tl.constexpr, BIAS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr, EVEN_Q: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key tile, summed over the query heads of its group; with low-rank factors also dG per query
    head, ``d_extra`` (B, H, Nk, WIDTH) float32."""
    SUB_K: tl.constexpr = (BLOCK_K + TILE_K - 1) // TILE_K
    block = tl.program_id(0) // SUB_K
    part = tl.program_id(0) % SUB_K
    kv_heads = heads // group
    batch = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads

    start_k = block * BLOCK_K + part * TILE_K
    slot_k = part * TILE_K + tl.arange(0, TILE_K)
    k_tokens = start_k + tl.arange(0, TILE_K)
    k_ok = slot_k < tl.load(tokens.k_valid + block)
    inside = (slot_k < BLOCK_K) & (k_tokens < tokens.n_k)
    k_tile = load_tile(base(k, batch, kv_head, start_k), k.token, k_ok, TILE_K, D, DP, True)
    v_tile = load_tile(base(v, batch, kv_head, start_k), v.token, k_ok, TILE_K, D, DP, True)
    acc_k = tl.zeros([TILE_K, DP], tl.float32)
    acc_v = tl.zeros([TILE_K, DP], tl.float32)
    factor = scale * LOG2E

    for member in range(group):
        head = kv_head * group + member
        row = list_row(lists, batch, head, block)
        extra = tl.zeros([TILE_K, WIDTH], tl.float32)
        acc_k, acc_v, extra = _visit_queries(
            q, d_out, delta, exponent, tokens, bias, rule, lists.full_index + row * lists.full_width,
            tl.load(lists.full_count + row), k_tile, v_tile, acc_k, acc_v, extra, k_tokens, k_ok, batch, head, heads,
            factor, D, DP, BLOCK_Q, TILE_Q, AXES, BIAS, SIZE, WIDTH, STAGES, EVEN_Q, False,
        )  # fmt: skip
        if lists.part_count is not None:
            acc_k, acc_v, extra = _visit_queries(
                q, d_out, delta, exponent, tokens, bias, rule, lists.part_index + row * lists.part_width,
                tl.load(lists.part_count + row), k_tile, v_tile, acc_k, acc_v, extra, k_tokens, k_ok, batch, head,
                heads, factor, D, DP, BLOCK_Q, TILE_Q, AXES, BIAS, SIZE, WIDTH, STAGES, EVEN_Q, True,
            )  # fmt: skip
        if BIAS == LOW_RANK:
            columns = tl.arange(0, WIDTH)
            at = ((batch * heads + head).to(tl.int64) * tokens.n_k + k_tokens)[:, None] * WIDTH + columns[None, :]
            tl.store(d_extra + at, extra, mask=inside[:, None])

    store_tile(base(dk, batch, kv_head, start_k), dk.token, acc_k * scale, inside, TILE_K, D, DP)
    store_tile(base(dv, batch, kv_head, start_k), dv.token, acc_v, inside, TILE_K, D, DP)
