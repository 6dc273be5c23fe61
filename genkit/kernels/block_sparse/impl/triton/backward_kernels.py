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
    BITS,
    LOG2E,
    Head,
    Side,
    base,
    bits_show,
    full_entries,
    key_tiles,
    load_keys,
    load_tile,
    locate,
    partial_entries,
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
    q_tile, d_tile, queries, row_exponent, row_delta, k, v, entries, tables, head, factor, acc, extra,
    SHAPE: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks for dQ."""
    BLOCK_K: tl.constexpr = SHAPE.BLOCK_K
    TILE_K: tl.constexpr = SHAPE.TILE_K
    MASKED: tl.constexpr = PARTIAL or BLOCK_K % TILE_K != 0
    for step in tl.range(0, tile_count(entries.count, BLOCK_K, TILE_K), num_stages=SHAPE.STAGES):
        first, offset, k_ok = locate(entries, step, tables.tokens.k_valid, BLOCK_K, TILE_K, PARTIAL)
        k_tile = load_keys(k, head, first, offset, k_ok, SHAPE, MASKED)
        v_tile = load_keys(v, head, first, offset, k_ok, SHAPE, MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (queries.tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        own_ok, other_ok = queries.ok[:, None], k_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, own, other, own_ok, other_ok, SHAPE.BIAS, SHAPE.SIZE)
        weights = tl.exp2(scores - row_exponent[:, None])
        if PARTIAL:
            if SHAPE.MASK == BITS:
                tile, slots = key_tiles(entries, step, BLOCK_K, TILE_K)
                seen = bits_show(
                    tables.mask, tile[None, :], queries.slots[:, None], slots[None, :], own_ok & other_ok, SHAPE
                )
            else:
                seen = visible(tables.mask, head.batch, own, other, own_ok, other_ok, SHAPE.AXES, SHAPE.MASK)
            weights = tl.where(seen, weights, 0.0)
        elif MASKED:
            weights = tl.where(other_ok, weights, 0.0)
        d_weights = tl.dot(d_tile, tl.trans(v_tile), input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = tl.dot(d_scores.to(k_tile.dtype), k_tile, acc, input_precision="ieee")
        if SHAPE.BIAS:
            extra = add_query_gradient(extra, tables.bias, d_scores, head, own, other, own_ok, other_ok, SHAPE)
    return acc, extra


@triton.jit
def dq_kernel(inputs, rows, dq, d_extra, tables, call, SHAPE: tl.constexpr):
    """dQ, and with a bias its per-query gradient ``d_extra`` (B, H, Nq, WIDTH) float32.

    ``inputs`` are q, k, v and the gradient of out, ``rows`` what :func:`prepare_kernel` wrote: delta and exponent.
    """
    q, k, v, d_out = inputs
    delta, exponent = rows
    TILE_Q: tl.constexpr = SHAPE.TILE_Q
    SUB_Q: tl.constexpr = (SHAPE.BLOCK_Q + TILE_Q - 1) // TILE_Q
    block = tl.program_id(0) // SUB_Q
    part = tl.program_id(0) % SUB_Q
    number = tl.program_id(1) % call.heads
    head = Head(tl.program_id(1) // call.heads, number, number // call.group)

    start_q = block * SHAPE.BLOCK_Q + part * TILE_Q
    slots = part * TILE_Q + tl.arange(0, TILE_Q)
    queries = Side(start_q + tl.arange(0, TILE_Q), slots, slots < tl.load(tables.tokens.q_valid + block))
    at = base(q, head.batch, head.query, start_q)
    q_tile = load_tile(at, q.token, queries.ok, TILE_Q, SHAPE.D, SHAPE.DP, True)
    at = base(d_out, head.batch, head.query, start_q)
    d_tile = load_tile(at, d_out.token, queries.ok, TILE_Q, SHAPE.D, SHAPE.DP, True)
    line = tl.program_id(1).to(tl.int64) * tables.tokens.n_q + queries.tokens
    row_delta = tl.load(delta + line, mask=queries.ok, other=0.0)
    row_exponent = tl.load(exponent + line, mask=queries.ok, other=float("inf"))
    acc = tl.zeros([TILE_Q, SHAPE.DP], tl.float32)
    extra = tl.zeros([TILE_Q, SHAPE.WIDTH], tl.float32)
    factor = call.scale * LOG2E
    entries = full_entries(tables.lists, head, block)
    acc, extra = _visit_keys(
        q_tile, d_tile, queries, row_exponent, row_delta, k, v, entries, tables, head, factor, acc, extra, SHAPE, False
    )
    if tables.lists.part_count is not None:
        partial = partial_entries(tables.lists, head, block, SHAPE.MASK)
        acc, extra = _visit_keys(
            q_tile, d_tile, queries, row_exponent, row_delta, k, v, partial, tables, head, factor, acc, extra, SHAPE,
            True,
        )  # fmt: skip

    inside = (slots < SHAPE.BLOCK_Q) & (queries.tokens < tables.tokens.n_q)
    at = base(dq, head.batch, head.query, start_q)
    store_tile(at, dq.token, acc * call.scale, inside, TILE_Q, SHAPE.D, SHAPE.DP)
    if SHAPE.BIAS:
        columns = tl.arange(0, SHAPE.WIDTH)
        tl.store(d_extra + line[:, None] * SHAPE.WIDTH + columns[None, :], extra, mask=inside[:, None])


@triton.jit
def _visit_queries(
    q, d_out, rows, k_tile, v_tile, keys, entries, tables, head, line, factor, acc_k, acc_v, extra,
    SHAPE: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one inverse list for dK and dV. Scores are kept turned, (keys, queries), so that no tile is transposed."""
    delta, exponent = rows
    TILE_Q: tl.constexpr = SHAPE.TILE_Q
    SUB_Q: tl.constexpr = (SHAPE.BLOCK_Q + TILE_Q - 1) // TILE_Q
    for step in tl.range(0, entries.count * SUB_Q, num_stages=SHAPE.STAGES):
        block = tl.load(entries.index + step // SUB_Q)
        start_q = block * SHAPE.BLOCK_Q + (step % SUB_Q) * TILE_Q
        slots = (step % SUB_Q) * TILE_Q + tl.arange(0, TILE_Q)
        q_tokens = start_q + tl.arange(0, TILE_Q)
        if SHAPE.EVEN_Q:
            row_ok = slots < SHAPE.BLOCK_Q
            row_exponent = tl.load(exponent + line + q_tokens)
            row_delta = tl.load(delta + line + q_tokens)
        else:
            row_ok = slots < tl.load(tables.tokens.q_valid + block)
            row_exponent = tl.load(exponent + line + q_tokens, mask=row_ok, other=float("inf"))
            row_delta = tl.load(delta + line + q_tokens, mask=row_ok, other=0.0)
        at = base(q, head.batch, head.query, start_q)
        q_tile = load_tile(at, q.token, row_ok, TILE_Q, SHAPE.D, SHAPE.DP, not SHAPE.EVEN_Q)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * factor
        # `block >> 31` is 0, but only known in the loop: else the key side's tables would be kept in registers.
        own = (keys.tokens + (block >> 31))[:, None]
        other = q_tokens[None, :]
        own_ok, other_ok = keys.ok[:, None], row_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, other, own, other_ok, own_ok, SHAPE.BIAS, SHAPE.SIZE)
        weights = tl.exp2(scores - row_exponent[None, :])
        if PARTIAL:
            if SHAPE.MASK == BITS:
                tile = tl.load(entries.tile + step // SUB_Q)
                seen = bits_show(tables.mask, tile, slots[None, :], keys.slots[:, None], own_ok & other_ok, SHAPE)
            else:
                seen = visible(tables.mask, head.batch, other, own, other_ok, own_ok, SHAPE.AXES, SHAPE.MASK)
            weights = tl.where(seen, weights, 0.0)
        elif SHAPE.BIAS != 0 and not SHAPE.EVEN_Q:
            # a query that does not exist has factor 0, times an infinite one that is NaN
            weights = tl.where(other_ok, weights, 0.0)
        at = base(d_out, head.batch, head.query, start_q)
        d_tile = load_tile(at, d_out.token, row_ok, TILE_Q, SHAPE.D, SHAPE.DP, not SHAPE.EVEN_Q)
        acc_v = tl.dot(weights.to(d_tile.dtype), d_tile, acc_v, input_precision="ieee")
        d_weights = tl.dot(v_tile, tl.trans(d_tile), input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[None, :])
        acc_k = tl.dot(d_scores.to(q_tile.dtype), q_tile, acc_k, input_precision="ieee")
        if SHAPE.BIAS == LOW_RANK:
            extra = add_factor_gradient(extra, tables.bias.f, d_scores, head, other, other_ok, SHAPE)
    return acc_k, acc_v, extra


@triton.jit
def dkv_kernel(inputs, rows, dk, dv, d_extra, tables, call, SHAPE: tl.constexpr):
    """dK and dV of one key tile, summed over the query heads of its group; with low-rank factors also dG per query
    head, ``d_extra`` (B, H, Nk, WIDTH) float32. ``tables`` hold the inverse lists; the rest is as in
    :func:`dq_kernel`."""
    q, k, v, d_out = inputs
    TILE_K: tl.constexpr = SHAPE.TILE_K
    SUB_K: tl.constexpr = (SHAPE.BLOCK_K + TILE_K - 1) // TILE_K
    block = tl.program_id(0) // SUB_K
    part = tl.program_id(0) % SUB_K
    kv_heads = call.heads // call.group
    batch = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads

    start_k = block * SHAPE.BLOCK_K + part * TILE_K
    slots = part * TILE_K + tl.arange(0, TILE_K)
    keys = Side(start_k + tl.arange(0, TILE_K), slots, slots < tl.load(tables.tokens.k_valid + block))
    inside = (slots < SHAPE.BLOCK_K) & (keys.tokens < tables.tokens.n_k)
    k_tile = load_tile(base(k, batch, kv_head, start_k), k.token, keys.ok, TILE_K, SHAPE.D, SHAPE.DP, True)
    v_tile = load_tile(base(v, batch, kv_head, start_k), v.token, keys.ok, TILE_K, SHAPE.D, SHAPE.DP, True)
    acc_k = tl.zeros([TILE_K, SHAPE.DP], tl.float32)
    acc_v = tl.zeros([TILE_K, SHAPE.DP], tl.float32)
    factor = call.scale * LOG2E

    for member in range(call.group):
        head = Head(batch, kv_head * call.group + member, kv_head)
        number = (batch * call.heads + head.query).to(tl.int64)
        line = number * tables.tokens.n_q
        extra = tl.zeros([TILE_K, SHAPE.WIDTH], tl.float32)
        entries = full_entries(tables.lists, head, block)
        acc_k, acc_v, extra = _visit_queries(
            q, d_out, rows, k_tile, v_tile, keys, entries, tables, head, line, factor, acc_k, acc_v, extra, SHAPE,
            False,
        )  # fmt: skip
        if tables.lists.part_count is not None:
            partial = partial_entries(tables.lists, head, block, SHAPE.MASK)
            acc_k, acc_v, extra = _visit_queries(
                q, d_out, rows, k_tile, v_tile, keys, partial, tables, head, line, factor, acc_k, acc_v, extra, SHAPE,
                True,
            )  # fmt: skip
        if SHAPE.BIAS == LOW_RANK:
            columns = tl.arange(0, SHAPE.WIDTH)
            at = (number * tables.tokens.n_k + keys.tokens)[:, None] * SHAPE.WIDTH + columns[None, :]
            tl.store(d_extra + at, extra, mask=inside[:, None])

    at = base(dk, batch, kv_head, start_k)
    store_tile(at, dk.token, acc_k * call.scale, inside, TILE_K, SHAPE.D, SHAPE.DP)
    store_tile(base(dv, batch, kv_head, start_k), dv.token, acc_v, inside, TILE_K, SHAPE.D, SHAPE.DP)
