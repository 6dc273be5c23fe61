"""Forward Triton kernel of the block-sparse operator: one program per (query tile, batch, head)."""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.block_sparse.impl.triton.bias import tile_bias
from genkit.kernels.block_sparse.impl.triton.tile import (
    LN2,
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
    q_tile, k, v, bias, rule, entries, count, valid, running_max, mass, acc, q_tokens, row_ok, batch, head, kv_head,
    factor,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_K: tl.constexpr, TILE_K: tl.constexpr, AXES: tl.constexpr,
    BIAS: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Walk one list of key blocks."""
    MASKED: tl.constexpr = PARTIAL or BLOCK_K % TILE_K != 0
    for step in tl.range(0, tile_count(count, BLOCK_K, TILE_K), num_stages=STAGES):
        first, offset, k_ok = locate(entries, count, step, valid, BLOCK_K, TILE_K, PARTIAL)
        k_tile = load_keys(k, batch, kv_head, first, offset, k_ok, BLOCK_K, TILE_K, D, DP, MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * factor
        # `first >> 31` is 0, but only known in the loop: else the query side's tables would be kept in registers.
        own = (q_tokens + (first >> 31))[:, None]
        other = (first + offset)[None, :]
        if BIAS:
            scores += LOG2E * tile_bias(bias, batch, head, own, other, row_ok[:, None], k_ok[None, :], BIAS, SIZE)
        if PARTIAL:
            seen = visible(rule, batch, own, other, row_ok[:, None], k_ok[None, :], AXES)
            scores = tl.where(seen, scores, -float("inf"))
        elif MASKED:
            scores = tl.where(k_ok[None, :], scores, -float("inf"))
        v_tile = load_keys(v, batch, kv_head, first, offset, k_ok, BLOCK_K, TILE_K, D, DP, MASKED)
        running_max, mass, acc = _online_step(scores, v_tile, running_max, mass, acc, PARTIAL)
    return running_max, mass, acc


@triton.jit
def forward_kernel(
    q, k, v, out, lse, lists, tokens, rule, bias, scale, heads, group,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr, AXES: tl.constexpr, BIAS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """``out`` (B, Nq, H, D) in its dtype and ``lse`` (B, H, Nq) float32, natural log, of one query tile of one head.

    Grid: (query blocks * tiles per block, B * H). ``q``, ``k``, ``v`` and ``out`` are :class:`View`, k and v with
    ``heads // group`` heads; ``lists``, ``tokens``, ``rule`` and ``bias`` are the records of triton_tile and
    triton_bias (None where the plan has no rule or the call no bias). Full blocks are walked before partial ones; a row
    that sees nothing gets output 0 and lse -inf.
    """
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

    running_max = tl.full([TILE_Q], -float("inf"), tl.float32)
    mass = tl.zeros([TILE_Q], tl.float32)
    acc = tl.zeros([TILE_Q, DP], tl.float32)
    factor = scale * LOG2E
    row = list_row(lists, batch, head, block)
    running_max, mass, acc = _visit(
        q_tile, k, v, bias, rule, lists.full_index + row * lists.full_width, tl.load(lists.full_count + row),
        tokens.k_valid, running_max, mass, acc, q_tokens, row_ok, batch, head, head // group, factor,
        D, DP, BLOCK_K, TILE_K, AXES, BIAS, SIZE, STAGES, False,
    )  # fmt: skip
    if lists.part_count is not None:
        running_max, mass, acc = _visit(
            q_tile, k, v, bias, rule, lists.part_index + row * lists.part_width, tl.load(lists.part_count + row),
            tokens.k_valid, running_max, mass, acc, q_tokens, row_ok, batch, head, head // group, factor,
            D, DP, BLOCK_K, TILE_K, AXES, BIAS, SIZE, STAGES, True,
        )  # fmt: skip

    # NaN mass must stay NaN: only a true zero is a row that saw nothing.
    empty = (mass == 0.0) | (row_ok == 0)
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, mass)[:, None])
    total = tl.where(empty, -float("inf"), (running_max + tl.log2(tl.where(empty, 1.0, mass))) * LN2)
    inside = (slot_q < BLOCK_Q) & (q_tokens < tokens.n_q)
    store_tile(base(out, batch, head, start_q), out.token, acc, inside, TILE_Q, D, DP)
    tl.store(lse + tl.program_id(1).to(tl.int64) * tokens.n_q + q_tokens, total, mask=inside)
