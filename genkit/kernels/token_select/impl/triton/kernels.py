"""Triton kernels of per-token selection: outer loop over key blocks, inner over the queries that chose them, reduction
last.

Partial results of a pair (query token, key block) go to a buffer in float32 and are merged per query row, so no
atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.channels.triton import (
    add_products,
    dot_channels,
    load_parts,
    scale_parts,
    store_parts,
    zero_parts,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _places(x, batch, head, rows):
    """Addresses of rows of one head of a (B, N, H, D) view."""
    return x.ptr + batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + rows.to(tl.int64) * x.token


@triton.jit
def _gather(x, batch, head, rows, ok, D: tl.constexpr, PARTS: tl.constexpr):
    """Rows of one head of a (B, N, H, D) view in parts, 0 where not ok."""
    return load_parts(_places(x, batch, head, rows), ok, D, PARTS, True)


@triton.jit
def _pair_tile(work, TILE_Q: tl.constexpr):
    """What one query tile of a head works on: (line, batch, head, block, the queries' tokens, their slots, validity).

    How many tiles every block makes only the device knows: there are as many programs as could be needed, and the block
    of a tile is the number of blocks that end before it. Behind the last one it is ``work.blocks``.
    """
    number, line = tl.program_id(0), tl.program_id(1)
    ends = work.tile_end + line.to(tl.int64) * work.blocks
    block, before = 0, 0
    for first in range(0, work.blocks, 64):
        at = first + tl.arange(0, 64)
        end = tl.load(ends + at, mask=at < work.blocks, other=2**31 - 1)
        block += tl.sum((end <= number).to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(end <= number, end, 0), 0))
    starts = work.start + line.to(tl.int64) * (work.blocks + 1) + block
    live = block < work.blocks
    begin = tl.load(starts, mask=live, other=0)
    pairs = begin + (number - before) * TILE_Q + tl.arange(0, TILE_Q)
    ok = pairs < tl.load(starts + 1, mask=live, other=0)
    row = tl.load(work.entry + line.to(tl.int64) * work.entries + pairs, mask=ok, other=0)
    where = work.first_line + line
    slots = line.to(tl.int64) * work.room + pairs
    return where, where // work.heads, where % work.heads, block, work.first_query + row, slots, ok


@triton.jit
def forward_kernel(
    q, k, v, part_out, part_lse, work, starts, scale, group,
    D: tl.constexpr, PARTS: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of gathered queries over one key block, unmerged."""
    line, batch, head, block, rows, slots, ok = _pair_tile(work, TILE_Q)
    if block >= work.blocks:
        return
    q_tile = _gather(q, batch, head, rows, ok, D, PARTS)
    key_start = tl.load(starts + block)
    key_end = tl.load(starts + block + 1)
    running_max = tl.full([TILE_Q], -float("inf"), tl.float32)
    mass = tl.zeros([TILE_Q], tl.float32)
    acc = zero_parts(TILE_Q, PARTS)
    for at in tl.range(key_start, key_end, TILE_K, num_stages=STAGES):
        keys = at + tl.arange(0, TILE_K)
        k_ok = keys < key_end
        k_tile = _gather(k, batch, head // group, keys, k_ok, D, PARTS)
        scores = dot_channels(q_tile, k_tile, PARTS) * (scale * LOG2E)
        scores = tl.where(k_ok[None, :], scores, -float("inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        shrink = tl.exp2(running_max - new_max)
        mass = mass * shrink + tl.sum(weights, 1)
        v_tile = _gather(v, batch, head // group, keys, k_ok, D, PARTS)
        acc = add_products(scale_parts(acc, shrink[:, None], PARTS), weights, v_tile, PARTS)
        running_max = new_max
    store_parts(part_out + slots * D, scale_parts(acc, 1.0 / mass[:, None], PARTS), ok, D, PARTS)
    tl.store(part_lse + slots, running_max + tl.log2(mass), mask=ok)


@triton.jit
def _parts_of(lists, TILE: tl.constexpr):
    """Of TILE queries: (batch, head, the tokens, validity, where their lists of places begin, how long they are)."""
    line = tl.program_id(1)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ok = rows < lists.rows
    at = line.to(tl.int64) * lists.rows + rows
    count = tl.load(lists.held + at, mask=ok, other=0)
    where = lists.first_line + line
    return (
        where // lists.heads,
        where % lists.heads,
        lists.first_query + rows,
        ok,
        lists.place + at * lists.width,
        count,
    )


@triton.jit
def merge_kernel(part_out, part_lse, out, lse, lists, n, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr):
    """Log-sum-exp merge of the parts of TILE query rows, in ascending block order."""
    batch, head, tokens, ok, places, count = _parts_of(lists, TILE)
    columns = tl.arange(0, DP)
    real = (columns < D)[None, :]
    top = tl.full([TILE], -float("inf"), tl.float32)
    mass = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, DP], tl.float32)
    for step in range(tl.max(count, 0)):
        live = step < count
        slot = tl.program_id(1).to(tl.int64) * lists.room + tl.load(places + step, mask=live, other=0)
        part = tl.load(part_lse + slot, mask=live, other=-float("inf"))
        new_top = tl.maximum(top, part)
        pivot = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(part - pivot)
        shrink = tl.exp2(top - pivot)
        piece = tl.load(part_out + slot[:, None] * D + columns[None, :], mask=live[:, None] & real, other=0.0)
        acc = acc * shrink[:, None] + piece * weight[:, None]
        mass = mass * shrink + weight
        top = new_top
    empty = mass == 0.0
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, mass)[:, None])
    total = tl.where(empty, -float("inf"), (top + tl.log2(tl.where(empty, 1.0, mass))) * LN2)
    target = out.ptr + batch.to(tl.int64) * out.batch + head.to(tl.int64) * out.head
    target = target + tokens.to(tl.int64)[:, None] * out.token + columns[None, :]
    tl.store(target, acc.to(out.ptr.dtype.element_ty), mask=ok[:, None] & (columns < D)[None, :])
    tl.store(lse + (lists.first_line + tl.program_id(1)).to(tl.int64) * n + tokens, total, mask=ok)


@triton.jit
def dq_kernel(
    q, k, v, d_out, part_dq, delta, exponent, work, starts, scale, n, group,
    D: tl.constexpr, PARTS: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The share of dQ that one key block gives to the queries that chose it."""
    line, batch, head, block, rows, slots, ok = _pair_tile(work, TILE_Q)
    if block >= work.blocks:
        return
    q_tile = _gather(q, batch, head, rows, ok, D, PARTS)
    d_tile = _gather(d_out, batch, head, rows, ok, D, PARTS)
    at = line.to(tl.int64) * n + rows
    row_delta = tl.load(delta + at, mask=ok, other=0.0)
    row_exponent = tl.load(exponent + at, mask=ok, other=float("inf"))
    key_start = tl.load(starts + block)
    key_end = tl.load(starts + block + 1)
    acc = zero_parts(TILE_Q, PARTS)
    for first_key in tl.range(key_start, key_end, TILE_K, num_stages=STAGES):
        keys = first_key + tl.arange(0, TILE_K)
        k_ok = keys < key_end
        k_tile = _gather(k, batch, head // group, keys, k_ok, D, PARTS)
        v_tile = _gather(v, batch, head // group, keys, k_ok, D, PARTS)
        scores = dot_channels(q_tile, k_tile, PARTS) * (scale * LOG2E)
        weights = tl.where(k_ok[None, :], tl.exp2(scores - row_exponent[:, None]), 0.0)
        d_weights = dot_channels(d_tile, v_tile, PARTS)
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = add_products(acc, d_scores, k_tile, PARTS)
    store_parts(part_dq + slots * D, scale_parts(acc, scale, PARTS), ok, D, PARTS)


@triton.jit
def sum_kernel(part_dq, dq, lists, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr):
    """dQ of TILE rows as the sum of their parts, in ascending block order."""
    batch, head, tokens, ok, places, count = _parts_of(lists, TILE)
    columns = tl.arange(0, DP)
    real = (columns < D)[None, :]
    acc = tl.zeros([TILE, DP], tl.float32)
    for step in range(tl.max(count, 0)):
        live = step < count
        slot = tl.program_id(1).to(tl.int64) * lists.room + tl.load(places + step, mask=live, other=0)
        acc += tl.load(part_dq + slot[:, None] * D + columns[None, :], mask=live[:, None] & real, other=0.0)
    target = dq.ptr + batch.to(tl.int64) * dq.batch + head.to(tl.int64) * dq.head
    target = target + tokens.to(tl.int64)[:, None] * dq.token + columns[None, :]
    tl.store(target, acc.to(dq.ptr.dtype.element_ty), mask=ok[:, None] & (columns < D)[None, :])


@triton.jit
def dkv_kernel(
    q, k, v, d_out, dk, dv, delta, exponent, key_tile_block, key_tile_start, start, entry, entries, starts, scale, n,
    heads, group, blocks,
    D: tl.constexpr, PARTS: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key tile from all queries that chose its block; key blocks are disjoint: nothing is shared."""
    block = tl.load(key_tile_block + tl.program_id(0))
    keys = tl.load(key_tile_start + tl.program_id(0)) + tl.arange(0, TILE_K)
    k_ok = keys < tl.load(starts + block + 1)
    kv_heads = heads // group
    batch = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    k_tile = _gather(k, batch, kv_head, keys, k_ok, D, PARTS)
    v_tile = _gather(v, batch, kv_head, keys, k_ok, D, PARTS)
    acc_k = zero_parts(TILE_K, PARTS)
    acc_v = zero_parts(TILE_K, PARTS)
    for member in range(group):
        head = kv_head * group + member
        number = (batch * heads + head).to(tl.int64)
        begin = tl.load(start + number * (blocks + 1) + block)
        end = tl.load(start + number * (blocks + 1) + block + 1)
        line = number * n
        for at in tl.range(begin, end, TILE_Q, num_stages=STAGES):
            pairs = at + tl.arange(0, TILE_Q)
            ok = pairs < end
            rows = tl.load(entry + number * entries + pairs, mask=ok, other=0)
            row_delta = tl.load(delta + line + rows, mask=ok, other=0.0)
            row_exponent = tl.load(exponent + line + rows, mask=ok, other=float("inf"))
            q_tile = _gather(q, batch, head, rows, ok, D, PARTS)
            scores = dot_channels(k_tile, q_tile, PARTS) * (scale * LOG2E)
            weights = tl.exp2(scores - row_exponent[None, :])
            d_tile = _gather(d_out, batch, head, rows, ok, D, PARTS)
            acc_v = add_products(acc_v, weights, d_tile, PARTS)
            d_weights = dot_channels(v_tile, d_tile, PARTS)
            d_scores = weights * (d_weights - row_delta[None, :])
            acc_k = add_products(acc_k, d_scores, q_tile, PARTS)
    at_k, at_v = _places(dk, batch, kv_head, keys), _places(dv, batch, kv_head, keys)
    store_parts(at_k, scale_parts(acc_k, scale, PARTS), k_ok, D, PARTS)
    store_parts(at_v, acc_v, k_ok, D, PARTS)
