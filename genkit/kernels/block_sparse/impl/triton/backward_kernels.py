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
    BOX,
    FULL,
    LOG2E,
    MEMBER,
    MEMBER_BLOCK,
    MIXED,
    NO_MASK,
    RAGGED,
    Head,
    Side,
    base,
    bits_show,
    box_keys,
    box_queries,
    boxes_touch,
    list_entries,
    load_keys,
    load_tile,
    locate,
    pairs_seen,
    read_entry,
    rule_allows,
    store_tile,
    tile_count,
)
from genkit.kernels.channels.triton import add_products, dot_channels, load_bulk, scale_parts, zero_parts

# Which gradients of a key tile a program makes.
BOTH = tl.constexpr(0)
KEYS = tl.constexpr(1)
VALUES = tl.constexpr(2)


@triton.jit
def prepare_kernel(
    out, d_out, lse, d_lse, to, n_q, heads,
    D: tl.constexpr, PARTS: tl.constexpr, TILE_Q: tl.constexpr,
):  # fmt: skip
    """delta and the base-2 lse of every row; rows that saw nothing, and those behind the last query, get +inf, which
    makes all their weights 0."""
    start = tl.program_id(0) * TILE_Q
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    rows = start + tl.arange(0, TILE_Q)
    ok = rows < n_q
    o = load_tile(base(out, batch, head, start), out.token, ok, TILE_Q, D, PARTS, True)
    g = load_tile(base(d_out, batch, head, start), d_out.token, ok, TILE_Q, D, PARTS, True)
    at = tl.program_id(1).to(tl.int64) * n_q + rows
    into = tl.program_id(1).to(tl.int64) * to.length + rows
    total = tl.load(lse + at, mask=ok, other=-float("inf"))
    row = tl.zeros([TILE_Q], tl.float32)
    for part in tl.static_range(len(PARTS)):
        row += tl.sum(o[part].to(tl.float32) * g[part].to(tl.float32), 1)
    if d_lse is not None:
        row -= tl.load(d_lse + at, mask=ok, other=0.0)
    unseen = total == -float("inf")
    # an infinite score made every weight of its row NaN, and so its gradients
    total = tl.where(total == float("inf"), float("nan"), total)
    tl.store(to.delta + into, tl.where(unseen, 0.0, row), mask=rows < to.length)
    tl.store(to.exponent + into, tl.where(unseen, float("inf"), total * LOG2E), mask=rows < to.length)


@triton.jit
def _visit_keys(
    q_tile, d_tile, queries, window, row_exponent, row_delta, k, v, bulk, entries, tables, head, factor, acc, extra,
    SHAPE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks for dQ. ``window`` is what a packed rule says of the queries."""
    BLOCK_K: tl.constexpr = SHAPE.BLOCK_K
    TILE_K: tl.constexpr = SHAPE.TILE_K
    HELD: tl.constexpr = (BLOCK_K % TILE_K == 0) and (LIST == FULL or SHAPE.EVEN_K)
    steps = tile_count(entries.count, BLOCK_K, TILE_K)
    ahead, tile_ahead = read_entry(entries, 0, steps, BLOCK_K, TILE_K, True)
    for step in tl.range(0, steps, num_stages=SHAPE.STAGES):
        block, tile = ahead, tile_ahead
        ahead, tile_ahead = read_entry(entries, step + 1, steps, BLOCK_K, TILE_K, True)
        first, offset, k_ok, held = locate(entries, block, step, tables.tokens, BLOCK_K, TILE_K, LIST)
        k_tile = load_keys(k, bulk[0], head, first, offset, held, SHAPE, not HELD)
        v_tile = load_keys(v, bulk[1], head, first, offset, held, SHAPE, not HELD)
        scores = dot_channels(q_tile, k_tile, SHAPE.PARTS) * factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (queries.tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        own_ok, other_ok = queries.ok[:, None], k_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, own, other, own_ok, other_ok, SHAPE)
        weights = tl.exp2(scores - row_exponent[:, None])
        if LIST == MIXED:
            seen = pairs_seen(tables, window, queries, head, own, other, own_ok, other_ok, tile, step, SHAPE)
            weights = tl.where(seen, weights, 0.0)
        elif LIST == RAGGED or BLOCK_K % TILE_K != 0:
            weights = tl.where(other_ok, weights, 0.0)
        d_weights = dot_channels(d_tile, v_tile, SHAPE.PARTS)
        d_scores = weights * (d_weights - row_delta[:, None])
        acc = add_products(acc, d_scores, k_tile, SHAPE.PARTS)
        if SHAPE.BIAS:
            extra = add_query_gradient(extra, tables.bias, d_scores, head, own, other, own_ok, other_ok, SHAPE)
    return acc, extra


@triton.jit
def dq_kernel(inputs, bulk_k, bulk_v, rows, dq, d_extra, tables, call, SHAPE: tl.constexpr):
    """dQ, and with a bias its per-query gradient ``d_extra`` (B, H, Nq, WIDTH) float32.

    ``inputs`` are q, k, v and the gradient of out, ``bulk_k`` and ``bulk_v`` as in :func:`forward_kernel`,
    ``rows`` what :func:`prepare_kernel` wrote.
    """
    q, k, v, d_out = inputs
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
    at = base(d_out, head.batch, head.query, start_q)
    d_tile = load_tile(at, d_out.token, queries.ok, TILE_Q, SHAPE.D, SHAPE.PARTS, True)
    line = tl.program_id(1).to(tl.int64) * rows.length + queries.tokens
    row_delta = tl.load(rows.delta + line, mask=queries.ok, other=0.0)
    row_exponent = tl.load(rows.exponent + line, mask=queries.ok, other=float("inf"))
    acc = zero_parts(TILE_Q, SHAPE.PARTS)
    extra = tl.zeros([TILE_Q, SHAPE.WIDTH], tl.float32)
    factor = call.scale * LOG2E
    window = (queries.tokens, queries.tokens)
    if SHAPE.MASK == BOX:
        window = box_queries(tables.mask, queries.tokens)
    entries = list_entries(tables.lists, head, block, FULL, SHAPE.MASK)
    acc, extra = _visit_keys(
        q_tile, d_tile, queries, window, row_exponent, row_delta, k, v, bulk, entries, tables, head, factor, acc, extra,
        SHAPE, FULL,
    )  # fmt: skip
    if tables.lists.part_count is not None:
        if SHAPE.MASK == NO_MASK or tables.lists.ragged_count is not None:
            entries = list_entries(tables.lists, head, block, RAGGED, SHAPE.MASK)
            acc, extra = _visit_keys(
                q_tile, d_tile, queries, window, row_exponent, row_delta, k, v, bulk, entries, tables, head, factor,
                acc, extra, SHAPE, RAGGED,
            )  # fmt: skip
        if SHAPE.MASK != NO_MASK:
            entries = list_entries(tables.lists, head, block, MIXED, SHAPE.MASK)
            acc, extra = _visit_keys(
                q_tile, d_tile, queries, window, row_exponent, row_delta, k, v, bulk, entries, tables, head, factor,
                acc, extra, SHAPE, MIXED,
            )  # fmt: skip

    inside = (slots < SHAPE.BLOCK_Q) & (queries.tokens < tables.tokens.n_q)
    at = base(dq, head.batch, head.query, start_q)
    store_tile(at, dq.token, scale_parts(acc, call.scale, SHAPE.PARTS), inside, TILE_Q, SHAPE.D, SHAPE.PARTS)
    if SHAPE.BIAS:
        columns = tl.arange(0, SHAPE.WIDTH)
        line = tl.program_id(1).to(tl.int64) * tables.tokens.n_q + queries.tokens
        tl.store(d_extra + line[:, None] * SHAPE.WIDTH + columns[None, :], extra, mask=inside[:, None])


@triton.jit
def _load_queries(x, bulk, head, start, ok, SHAPE: tl.constexpr):
    """Parts of TILE_Q queries or of what belongs to them, 0 where there are none."""
    if bulk is not None:
        return load_bulk(bulk, head.batch, head.query, start, SHAPE.TILE_Q, SHAPE.PARTS)
    else:
        at = base(x, head.batch, head.query, start)
        return load_tile(at, x.token, ok, SHAPE.TILE_Q, SHAPE.D, SHAPE.PARTS, not SHAPE.EVEN_Q)


@triton.jit
def _visit_queries(
    q, d_out, bulk, rows, k_tile, v_tile, keys, part, entries, tables, first_head, call, acc_k, acc_v, extra,
    SHAPE: tl.constexpr, LIST: tl.constexpr, MEMBERS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Walk one inverse list for dK and dV, of ``first_head``, or with ``MEMBERS`` of all query heads from it on that
    share a key head: an entry then holds the number of the head above ``MEMBER`` bits of the
    block. Scores are kept turned, (keys, queries), so that no tile is transposed.

    Nothing asks which queries of a block exist: those behind its end are zero rows whose exponent is +inf, so their
    weights are 0. Nor which keys do: what is added up for others is not stored.
    """
    TILE_Q: tl.constexpr = SHAPE.TILE_Q
    SUB_Q: tl.constexpr = (SHAPE.BLOCK_Q + TILE_Q - 1) // TILE_Q
    factor = call.scale * LOG2E
    place = (keys.tokens, keys.tokens)
    if LIST == MIXED:
        if SHAPE.MASK == BOX:
            place = box_keys(tables.mask, first_head.batch, keys.tokens)
    steps = entries.count * SUB_Q
    ahead, tile_ahead = read_entry(entries, 0, steps, SHAPE.BLOCK_Q, TILE_Q, False)
    for step in tl.range(0, steps, num_stages=SHAPE.STAGES):
        block, tile = ahead, tile_ahead
        ahead, tile_ahead = read_entry(entries, step + 1, steps, SHAPE.BLOCK_Q, TILE_Q, False)
        head = first_head
        if MEMBERS:
            head = Head(first_head.batch, first_head.query + (block >> MEMBER), first_head.key)
            block = block & MEMBER_BLOCK
        line = (head.batch * call.heads + head.query).to(tl.int64) * rows.length
        start_q = block * SHAPE.BLOCK_Q + (step % SUB_Q) * TILE_Q
        slots = (step % SUB_Q) * TILE_Q + tl.arange(0, TILE_Q)
        q_tokens = start_q + tl.arange(0, TILE_Q)
        row_ok = (slots < SHAPE.BLOCK_Q) & (q_tokens < tables.tokens.n_q)
        if SHAPE.BLOCK_Q % TILE_Q == 0:
            row_exponent = tl.load(rows.exponent + line + q_tokens)
            row_delta = tl.load(rows.delta + line + q_tokens)
        else:
            row_exponent = tl.load(rows.exponent + line + q_tokens, mask=slots < SHAPE.BLOCK_Q, other=float("inf"))
            row_delta = tl.load(rows.delta + line + q_tokens, mask=slots < SHAPE.BLOCK_Q, other=0.0)
        q_tile = _load_queries(q, bulk[0], head, start_q, row_ok, SHAPE)
        d_tile = _load_queries(d_out, bulk[1], head, start_q, row_ok, SHAPE)
        # Both products before anything is made of either: what they leave is then turned to half as many registers of
        # operands pair by pair, and float32 weights need not live through another product.
        scores = dot_channels(k_tile, q_tile, SHAPE.PARTS)
        scores *= factor
        # `block >> 31` is 0, but only known in the loop: else the key side's tables would be kept in registers.
        own = (keys.tokens + (block >> 31))[:, None]
        other = q_tokens[None, :]
        own_ok, other_ok = keys.ok[:, None], row_ok[None, :]
        if SHAPE.BIAS:
            scores += LOG2E * tile_bias(tables.bias, head, other, own, other_ok, own_ok, SHAPE)
        weights = tl.exp2(scores - row_exponent[None, :])
        if LIST == MIXED:
            if SHAPE.MASK == BOX:
                q_low, q_high = box_queries(tables.mask, other)
                seen = boxes_touch(tables.mask.guard, q_low, q_high, place[0][:, None], place[1][:, None])
            elif SHAPE.MASK == BITS:
                first = part * SHAPE.TILE_K
                seen = own_ok & bits_show(
                    tables.mask, tile, slots[None, :], keys.slots[:, None], first, other_ok, SHAPE.TILE_K, SHAPE
                )
            else:
                seen = rule_allows(tables.mask, head.batch, other, own, other_ok, own_ok, SHAPE.AXES)
            weights = tl.where(seen, weights, 0.0)
        if SHAPE.BIAS != 0:
            # a query that does not exist has factor 0, times an infinite one that is NaN
            weights = tl.where(row_exponent[None, :] == float("inf"), 0.0, weights)
        if WANTED != KEYS:
            acc_v = add_products(acc_v, weights, d_tile, SHAPE.PARTS)
        if WANTED != VALUES:
            d_weights = dot_channels(v_tile, d_tile, SHAPE.PARTS)
            d_scores = weights * (d_weights - row_delta[None, :])
            acc_k = add_products(acc_k, d_scores, q_tile, SHAPE.PARTS)
            if SHAPE.BIAS == LOW_RANK:
                extra = add_factor_gradient(extra, tables.bias.f, d_scores, head, other, SHAPE)
    return acc_k, acc_v, extra


@triton.jit
def _visit_both_lists(
    q, d_out, bulk, rows, k_tile, v_tile, keys, part, tables, block, owner, head, call, acc_k, acc_v, extra,
    SHAPE: tl.constexpr, MEMBERS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Walk the inverse lists that ``owner`` has for a key block, on behalf of ``head``."""
    entries = list_entries(tables.lists, owner, block, FULL, SHAPE.MASK)
    acc_k, acc_v, extra = _visit_queries(
        q, d_out, bulk, rows, k_tile, v_tile, keys, part, entries, tables, head, call, acc_k, acc_v, extra, SHAPE, FULL,
        MEMBERS, WANTED,
    )  # fmt: skip
    if tables.lists.part_count is not None:
        entries = list_entries(tables.lists, owner, block, MIXED, SHAPE.MASK)
        acc_k, acc_v, extra = _visit_queries(
            q, d_out, bulk, rows, k_tile, v_tile, keys, part, entries, tables, head, call, acc_k, acc_v, extra, SHAPE,
            MIXED, MEMBERS, WANTED,
        )  # fmt: skip
    return acc_k, acc_v, extra


@triton.jit
def _keys_and_values(inputs, bulk, rows, dk, dv, d_extra, tables, call, SHAPE: tl.constexpr, WANTED: tl.constexpr):
    """Both gradients of one key tile, or only one of them; the other's accumulator is then left out."""
    q, k, v, d_out = inputs
    TILE_K: tl.constexpr = SHAPE.TILE_K
    SUB_K: tl.constexpr = (SHAPE.BLOCK_K + TILE_K - 1) // TILE_K
    block = tl.program_id(0) // SUB_K
    part = tl.program_id(0) % SUB_K
    # With low-rank factors a program serves one query head, else all of those that share its key head.
    MEMBERS: tl.constexpr = SHAPE.GROUPED and SHAPE.BIAS != LOW_RANK
    owners = call.heads
    if MEMBERS:
        owners = call.heads // call.group
    batch = tl.program_id(1) // owners
    owner = tl.program_id(1) % owners
    kv_head = owner
    if SHAPE.GROUPED and not MEMBERS:
        kv_head = owner // call.group

    start_k = block * SHAPE.BLOCK_K + part * TILE_K
    slots = part * TILE_K + tl.arange(0, TILE_K)
    keys = Side(start_k + tl.arange(0, TILE_K), slots, slots < tl.load(tables.tokens.k_valid + block))
    inside = (slots < SHAPE.BLOCK_K) & (keys.tokens < tables.tokens.n_k)
    k_tile = load_tile(base(k, batch, kv_head, start_k), k.token, keys.ok, TILE_K, SHAPE.D, SHAPE.PARTS, True)
    v_tile = ()
    if WANTED != VALUES:
        v_tile = load_tile(base(v, batch, kv_head, start_k), v.token, keys.ok, TILE_K, SHAPE.D, SHAPE.PARTS, True)
    acc_k, acc_v = (), ()
    if WANTED != VALUES:
        acc_k = zero_parts(TILE_K, SHAPE.PARTS)
    if WANTED != KEYS:
        acc_v = zero_parts(TILE_K, SHAPE.PARTS)
    if SHAPE.BIAS == LOW_RANK:
        # a program per query head, each of which has a gradient of its own
        extra = tl.zeros([TILE_K, SHAPE.WIDTH], tl.float32)
        head = Head(batch, owner, kv_head)
        acc_k, acc_v, extra = _visit_both_lists(
            q, d_out, bulk, rows, k_tile, v_tile, keys, part, tables, block, head, head, call, acc_k, acc_v, extra,
            SHAPE, False, WANTED,
        )  # fmt: skip
        if WANTED != VALUES:
            columns = tl.arange(0, SHAPE.WIDTH)
            at = (tl.program_id(1).to(tl.int64) * tables.tokens.n_k + keys.tokens)[:, None] * SHAPE.WIDTH
            tl.store(d_extra + at + columns[None, :], extra, mask=inside[:, None])
    else:
        # one loop for all query heads of the group: a loop around it would cost some sixty registers
        shared = Head(batch, kv_head, kv_head)
        head = Head(batch, kv_head * call.group, kv_head)
        acc_k, acc_v, _ = _visit_both_lists(
            q, d_out, bulk, rows, k_tile, v_tile, keys, part, tables, block, shared, head, call, acc_k, acc_v, 0, SHAPE,
            MEMBERS, WANTED,
        )  # fmt: skip

    if WANTED != VALUES:
        at = base(dk, batch, owner, start_k)
        acc_k = scale_parts(acc_k, call.scale, SHAPE.PARTS)
        store_tile(at, dk.token, acc_k, inside, TILE_K, SHAPE.D, SHAPE.PARTS)
    if WANTED != KEYS:
        store_tile(base(dv, batch, owner, start_k), dv.token, acc_v, inside, TILE_K, SHAPE.D, SHAPE.PARTS)


@triton.jit
def dkv_kernel(inputs, bulk_q, bulk_d_out, rows, dk, dv, d_extra, tables, call, SHAPE: tl.constexpr):
    """dK and dV of one key tile, summed over the query heads of its group; with low-rank factors also dG per query
    head, ``d_extra`` (B, H, Nk, WIDTH) float32. ``bulk_q`` and ``bulk_d_out`` are descriptors of
    the queries and the gradient of out, or None; ``tables`` hold the inverse lists; the rest is as in
    :func:`dq_kernel`.

    Wide heads have a program for each of the two (``SHAPE.APART``, grid axis 2): two accumulators would leave no
    register for scores, which are then computed twice, five products for four."""
    bulk = (bulk_q, bulk_d_out)
    if SHAPE.APART:
        if tl.program_id(2) == 0:
            _keys_and_values(inputs, bulk, rows, dk, dv, d_extra, tables, call, SHAPE, KEYS)
        else:
            _keys_and_values(inputs, bulk, rows, dk, dv, d_extra, tables, call, SHAPE, VALUES)
    else:
        _keys_and_values(inputs, bulk, rows, dk, dv, d_extra, tables, call, SHAPE, BOTH)
