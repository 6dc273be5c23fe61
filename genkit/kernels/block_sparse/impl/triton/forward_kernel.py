"""Forward Triton kernel of the block-sparse operator: one program per (query tile, batch, head)."""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.block_sparse.impl.triton.bias import tile_bias
from genkit.kernels.block_sparse.impl.triton.tile import (
    BITS,
    LN2,
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
def _online_step(scores, values, running_max, mass, acc, GUARDED: tl.constexpr):
    """One step of the online softmax in base 2."""
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    if GUARDED:
        # A row may have seen nothing yet: subtracting -inf from -inf would give NaN.
        pivot = tl.where(new_max == -float("inf"), 0.0, new_max)
    else:
        pivot = new_max
    weights = tl.exp2(scores - pivot[:, None])
    shrink = tl.exp2(running_max - pivot)
    mass = mass * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return new_max, mass, acc


@triton.jit
def _visit(
    q_tile, queries, k, v, entries, tables, head, factor, running_max, mass, acc,
    SHAPE: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks."""
    BLOCK_K: tl.constexpr = SHAPE.BLOCK_K
    TILE_K: tl.constexpr = SHAPE.TILE_K
    MASKED: tl.constexpr = PARTIAL or BLOCK_K % TILE_K != 0
    # a bias may hide everything that a row has seen so far, as a mask may
    GUARDED: tl.constexpr = PARTIAL or SHAPE.BIAS != 0
    for step in tl.range(0, tile_count(entries.count, BLOCK_K, TILE_K), num_stages=SHAPE.STAGES):
        first, offset, k_ok = locate(entries, step, tables.tokens.k_valid, BLOCK_K, TILE_K, PARTIAL)
        k_tile = load_keys(k, head, first, offset, k_ok, SHAPE, MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (queries.tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        own_ok, other_ok = queries.ok[:, None], k_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, own, other, own_ok, other_ok, SHAPE.BIAS, SHAPE.SIZE)
        if PARTIAL:
            if SHAPE.MASK == BITS:
                tile, slots = key_tiles(entries, step, BLOCK_K, TILE_K)
                seen = bits_show(
                    tables.mask, tile[None, :], queries.slots[:, None], slots[None, :], own_ok & other_ok, SHAPE
                )
            else:
                seen = visible(tables.mask, head.batch, own, other, own_ok, other_ok, SHAPE.AXES, SHAPE.MASK)
            scores = tl.where(seen, scores, -float("inf"))
        elif MASKED:
            scores = tl.where(other_ok, scores, -float("inf"))
        v_tile = load_keys(v, head, first, offset, k_ok, SHAPE, MASKED)
        running_max, mass, acc = _online_step(scores, v_tile, running_max, mass, acc, GUARDED)
    return running_max, mass, acc


@triton.jit
def forward_kernel(inputs, out, lse, tables, call, SHAPE: tl.constexpr):
    """``out`` (B, Nq, H, D) in its dtype and ``lse`` (B, H, Nq) float32, natural log, of one query tile of one head.

    Grid: (query blocks * tiles per block, B * H). ``inputs`` are q, k, v as :class:`View`, k and v with
    ``heads // group`` heads; the other records are those of the tile file. Full blocks are walked before partial ones;
    a row that sees nothing gets output 0 and lse -inf.
    """
    q, k, v = inputs
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

    running_max = tl.full([TILE_Q], -float("inf"), tl.float32)
    mass = tl.zeros([TILE_Q], tl.float32)
    acc = tl.zeros([TILE_Q, SHAPE.DP], tl.float32)
    factor = call.scale * LOG2E
    entries = full_entries(tables.lists, head, block)
    running_max, mass, acc = _visit(
        q_tile, queries, k, v, entries, tables, head, factor, running_max, mass, acc, SHAPE, False
    )
    if tables.lists.part_count is not None:
        partial = partial_entries(tables.lists, head, block, SHAPE.MASK)
        running_max, mass, acc = _visit(
            q_tile, queries, k, v, partial, tables, head, factor, running_max, mass, acc, SHAPE, True
        )

    # NaN mass must stay NaN: only a true zero is a row that saw nothing.
    empty = (mass == 0.0) | (queries.ok == 0)
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, mass)[:, None])
    total = tl.where(empty, -float("inf"), (running_max + tl.log2(tl.where(empty, 1.0, mass))) * LN2)
    inside = (slots < SHAPE.BLOCK_Q) & (queries.tokens < tables.tokens.n_q)
    store_tile(base(out, head.batch, head.query, start_q), out.token, acc, inside, TILE_Q, SHAPE.D, SHAPE.DP)
    tl.store(lse + tl.program_id(1).to(tl.int64) * tables.tokens.n_q + queries.tokens, total, mask=inside)
