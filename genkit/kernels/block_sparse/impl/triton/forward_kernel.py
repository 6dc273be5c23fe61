"""Forward Triton kernel of the block-sparse operator: one program per (query tile, batch, head)."""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.block_sparse.impl.triton.bias import tile_bias
from genkit.kernels.block_sparse.impl.triton.tile import (
    BOX,
    FULL,
    LN2,
    LOG2E,
    MIXED,
    NO_MASK,
    RAGGED,
    Entries,
    Head,
    Side,
    base,
    box_queries,
    list_entries,
    load_keys,
    load_tile,
    locate,
    pairs_seen,
    read_entry,
    store_tile,
    tile_count,
)
from genkit.kernels.channels.triton import (
    add_products,
    divide_parts,
    dot_channels,
    load_bulk,
    scale_parts,
    zero_parts,
)


@triton.jit
def _online_step(
    scores, factor, values, running_max, mass, acc, GUARDED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax in base 2. The maximum is taken before scaling, so that scaling and subtracting
    it are one instruction; the factor is not negative."""
    new_max = tl.maximum(running_max, tl.max(scores, 1) * factor)
    if GUARDED:
        # A row may have seen nothing yet: subtracting -inf from -inf would give NaN.
        pivot = tl.where(new_max == -float("inf"), 0.0, new_max)
    else:
        pivot = new_max
    weights = tl.exp2(scores * factor - pivot[:, None])
    shrink = tl.exp2(running_max - pivot)
    mass = mass * shrink + tl.sum(weights, 1)
    acc = add_products(scale_parts(acc, shrink[:, None], PARTS), weights, values, PARTS)
    return new_max, mass, acc


@triton.jit
def _visit(
    q_tile, queries, window, k, v, bulk, entries, tables, head, factor, steps, running_max, mass, acc,
    SHAPE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks. ``window`` is what a packed rule says of the queries, ``bulk`` the descriptors
    of k and v, or None twice; ``steps`` those of int8 queries and the address of the keys', or None twice."""
    BLOCK_K: tl.constexpr = SHAPE.BLOCK_K
    TILE_K: tl.constexpr = SHAPE.TILE_K
    HELD: tl.constexpr = (BLOCK_K % TILE_K == 0) and (LIST == FULL or SHAPE.EVEN_K)
    # a bias may hide everything that a row has seen so far, as a mask may
    GUARDED: tl.constexpr = LIST != FULL or SHAPE.BIAS != 0
    # A bias is in units of the logits, and a factor that is not positive would turn the order of the scores.
    EARLY: tl.constexpr = SHAPE.BIAS != 0 or not SHAPE.POSITIVE
    count = tile_count(entries.count, BLOCK_K, TILE_K)
    ahead, tile_ahead = read_entry(entries, 0, count, BLOCK_K, TILE_K, True)
    for step in tl.range(0, count, num_stages=SHAPE.STAGES, warp_specialize=SHAPE.SPECIALISED):
        block, tile = ahead, tile_ahead
        ahead, tile_ahead = read_entry(entries, step + 1, count, BLOCK_K, TILE_K, True)
        first, offset, k_ok, held = locate(entries, block, step, tables.tokens, BLOCK_K, TILE_K, LIST)
        k_tile = load_keys(k, bulk[0], head, first, offset, held, SHAPE, not HELD)
        if steps[0] is None:
            scores = dot_channels(q_tile, k_tile, SHAPE.PARTS)
        else:
            key_steps = tl.load(steps[1] + first + offset, mask=held, other=0.0)
            scores = tl.dot(q_tile[0], tl.trans(k_tile[0]), out_dtype=tl.int32).to(tl.float32)
            scores = scores * (steps[0][:, None] * key_steps[None, :])
        if EARLY:
            scores *= factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (queries.tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        own_ok, other_ok = queries.ok[:, None], k_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, own, other, own_ok, other_ok, SHAPE)
        if LIST == MIXED:
            seen = pairs_seen(tables, window, queries, head, own, other, own_ok, other_ok, tile, step, SHAPE)
            scores = tl.where(seen, scores, -float("inf"))
        elif LIST == RAGGED or BLOCK_K % TILE_K != 0:
            scores = tl.where(other_ok, scores, -float("inf"))
        v_tile = load_keys(v, bulk[1], head, first, offset, held, SHAPE, not HELD)
        running_max, mass, acc = _online_step(
            scores, 1.0 if EARLY else factor, v_tile, running_max, mass, acc, GUARDED, SHAPE.PARTS
        )
    return running_max, mass, acc


@triton.jit
def _visit_pairs(q_tile, bulk, entries, head, factor, running_max, mass, acc, SHAPE: tl.constexpr):
    """Walk full key blocks two tiles at a time: one maximum, one rescaling and one set of barriers for both. Blocks of
    one tile go in pairs, a last odd one left out; a block of two tiles is a pair."""
    TILE_K: tl.constexpr = SHAPE.TILE_K
    TILES: tl.constexpr = SHAPE.BLOCK_K // TILE_K
    pairs = entries.count * TILES // 2
    first_ahead = tl.load(entries.index, mask=pairs > 0, other=0)
    second_ahead = tl.load(entries.index + (2 - TILES), mask=pairs > 0, other=0)
    for step in tl.range(0, pairs, num_stages=SHAPE.STAGES, warp_specialize=SHAPE.SPECIALISED):
        first, second = first_ahead * SHAPE.BLOCK_K, second_ahead * SHAPE.BLOCK_K + (TILES - 1) * TILE_K
        at = entries.index + (2 // TILES) * tl.minimum(step + 1, pairs - 1)
        first_ahead, second_ahead = tl.load(at), tl.load(at + (2 - TILES))
        k_first = load_bulk(bulk[0], head.batch, head.key, first, TILE_K, SHAPE.PARTS)
        k_second = load_bulk(bulk[0], head.batch, head.key, second, TILE_K, SHAPE.PARTS)
        scores = dot_channels(q_tile, k_first, SHAPE.PARTS)
        more = dot_channels(q_tile, k_second, SHAPE.PARTS)
        new_max = tl.maximum(running_max, tl.max(tl.maximum(scores, more), 1) * factor)
        weights = tl.exp2(scores * factor - new_max[:, None])
        others = tl.exp2(more * factor - new_max[:, None])
        shrink = tl.exp2(running_max - new_max)
        mass = mass * shrink + tl.sum(weights + others, 1)
        acc = scale_parts(acc, shrink[:, None], SHAPE.PARTS)
        v_first = load_bulk(bulk[1], head.batch, head.key, first, TILE_K, SHAPE.PARTS)
        v_second = load_bulk(bulk[1], head.batch, head.key, second, TILE_K, SHAPE.PARTS)
        acc = add_products(acc, weights, v_first, SHAPE.PARTS)
        acc = add_products(acc, others, v_second, SHAPE.PARTS)
        running_max = new_max
    return running_max, mass, acc


@triton.jit
def forward_kernel(inputs, bulk_k, bulk_v, out, lse, tables, call, SHAPE: tl.constexpr):
    """``out`` (B, Nq, H, D) in its dtype and ``lse`` (B, H, Nq) float32, natural log, of one query tile of one head.

    Grid: (query blocks * tiles per block, B * H). ``inputs`` are q, k, v as :class:`View`, k and v with
    ``heads // group`` heads; ``bulk_k`` and ``bulk_v`` tensor descriptors of their parts, or None where they are read
    through addresses; the other records are those of the tile file. Full blocks are walked before partial ones; a row
    that sees nothing gets output 0 and lse -inf.
    """
    q, k, v = inputs
    bulk = (bulk_k, bulk_v)
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
    q_tile = load_tile(at, q.token, queries.ok, TILE_Q, SHAPE.D, SHAPE.PARTS, True)

    running_max = tl.full([TILE_Q], -float("inf"), tl.float32)
    mass = tl.zeros([TILE_Q], tl.float32)
    acc = zero_parts(TILE_Q, SHAPE.PARTS)
    factor = call.scale * LOG2E
    window = (queries.tokens, queries.tokens)
    if SHAPE.MASK == BOX:
        window = box_queries(tables.mask, queries.tokens)
    steps = (None, None)
    if call.steps is not None:
        line = tl.program_id(1).to(tl.int64) * tables.tokens.n_q
        own = tl.load(call.steps.queries + line + queries.tokens, mask=queries.ok, other=0.0)
        line = head.batch.to(tl.int64) * (call.heads // call.group) + head.key
        steps = (own, call.steps.keys + line * tables.tokens.n_k)
    entries = list_entries(tables.lists, head, block, FULL, SHAPE.MASK)
    # Tiles of fewer queries leave room for two programs at once, which pairs would take; those of heads wider than 128
    # channels would not fit the shared memory in pairs.
    TILES: tl.constexpr = SHAPE.BLOCK_K // SHAPE.TILE_K
    WIDE: tl.constexpr = TILE_Q >= 2 * SHAPE.TILE_K and SHAPE.TILE_K <= 64 and (TILES == 1 or TILES == 2)
    PAIRED: tl.constexpr = bulk_k is not None and WIDE and SHAPE.D <= 128 and SHAPE.BIAS == 0 and SHAPE.POSITIVE
    if PAIRED:
        running_max, mass, acc = _visit_pairs(q_tile, bulk, entries, head, factor, running_max, mass, acc, SHAPE)
    if PAIRED and TILES == 1:
        done = entries.count // 2 * 2
        entries = Entries(entries.index + done, None, entries.count - done)
    if not PAIRED or TILES == 1:
        running_max, mass, acc = _visit(
            q_tile, queries, window, k, v, bulk, entries, tables, head, factor, steps, running_max, mass, acc, SHAPE,
            FULL,
        )  # fmt: skip
    if tables.lists.part_count is not None:
        if SHAPE.MASK == NO_MASK or tables.lists.ragged_count is not None:
            entries = list_entries(tables.lists, head, block, RAGGED, SHAPE.MASK)
            running_max, mass, acc = _visit(
                q_tile,
                queries,
                window,
                k,
                v,
                bulk,
                entries,
                tables,
                head,
                factor,
                steps,
                running_max,
                mass,
                acc,
                SHAPE,
                RAGGED,
            )
        if SHAPE.MASK != NO_MASK:
            entries = list_entries(tables.lists, head, block, MIXED, SHAPE.MASK)
            running_max, mass, acc = _visit(
                q_tile,
                queries,
                window,
                k,
                v,
                bulk,
                entries,
                tables,
                head,
                factor,
                steps,
                running_max,
                mass,
                acc,
                SHAPE,
                MIXED,
            )

    # NaN mass must stay NaN: only a true zero is a row that saw nothing.
    empty = (mass == 0.0) | (queries.ok == 0)
    acc = divide_parts(acc, mass, empty, SHAPE.PARTS)
    total = tl.where(empty, -float("inf"), (running_max + tl.log2(tl.where(empty, 1.0, mass))) * LN2)
    # The weights of a row with an infinite score are NaN, its log-sum-exp is not.
    total = tl.where(running_max == float("inf"), float("inf"), total)
    inside = (slots < SHAPE.BLOCK_Q) & (queries.tokens < tables.tokens.n_q)
    store_tile(base(out, head.batch, head.query, start_q), out.token, acc, inside, TILE_Q, SHAPE.D, SHAPE.PARTS)
    tl.store(lse + tl.program_id(1).to(tl.int64) * tables.tokens.n_q + queries.tokens, total, mask=inside)
