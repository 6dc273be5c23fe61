"""What the Triton kernels of the block-sparse operator share: argument records and the arithmetic of one tile.

A plan block may be larger than a kernel tile: a block of BLOCK tokens is executed as ceil(BLOCK / TILE) tiles. Blocks
smaller than a tile that divide it are packed, several list entries to a tile. Offsets inside a tile are 32-bit,
everything that can grow with the sequence or the batch is 64-bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Masks and exponents live in base 2: exp2 is one instruction, exp is two.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class View(NamedTuple):
    """A (B, N, H, D) tensor with unit stride along D: pointer and the other strides (0 where broadcast)."""

    ptr: Any
    batch: Any
    token: Any
    head: Any


class Lists(NamedTuple):
    """For every (batch, head, block): how many blocks of the other side it visits and which. ``batch`` and ``head`` are
    row strides, 0 where the lists are shared. Full entries need no mask; partial ones are checked token by token.
    ``part_count`` is None in a plan without partial blocks."""

    full_count: Any
    full_index: Any
    full_width: Any
    part_count: Any
    part_index: Any
    part_width: Any
    batch: Any
    head: Any


class Tokens(NamedTuple):
    """Lengths, and how many real tokens each block holds."""

    n_q: Any
    n_k: Any
    q_valid: Any
    k_valid: Any


class RuleTables(NamedTuple):
    """The rule of partial blocks: axis-major (A, N) int32 tables, None where a part of the rule is unused.

    ``slots_q`` and ``slots_k`` are the lengths of the tables. Bit g of ``q_all`` says that the query sees every key of
    group g, bit g of ``q_window`` that it sees those inside its window; ``k_bit`` (B|1, N) is 1 << group of the key.
    """

    q_lo: Any
    q_hi: Any
    k_pos: Any
    q_pos: Any
    radius2: Any
    q_all: Any
    q_window: Any
    k_bit: Any
    bit_batch: Any
    slots_q: Any
    slots_k: Any


@triton.jit
def base(x, batch, head, start):
    """Address of token ``start`` of one head."""
    return x.ptr + batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + start.to(tl.int64) * x.token


@triton.jit
def load_tile(pointer, stride, mask, TILE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """(TILE, DP) tile of consecutive tokens from ``pointer``; channels beyond D and masked rows are 0."""
    rows = tl.arange(0, TILE)
    columns = tl.arange(0, DP)
    at = pointer + rows[:, None] * stride + columns[None, :]
    if MASKED:
        if D == DP:
            return tl.load(at, mask=mask[:, None], other=0.0)
        else:
            return tl.load(at, mask=mask[:, None] & (columns < D)[None, :], other=0.0)
    else:
        if D == DP:
            return tl.load(at)
        else:
            return tl.load(at, mask=(columns < D)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, stride, value, mask, TILE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Inverse of :func:`load_tile`."""
    rows = tl.arange(0, TILE)
    columns = tl.arange(0, DP)
    at = pointer + rows[:, None] * stride + columns[None, :]
    if D == DP:
        tl.store(at, value.to(pointer.dtype.element_ty), mask=mask[:, None])
    else:
        tl.store(at, value.to(pointer.dtype.element_ty), mask=mask[:, None] & (columns < D)[None, :])


@triton.jit
def list_row(lists, batch, head, block):
    """Row of the list tables for one block."""
    return batch.to(tl.int64) * lists.batch + head.to(tl.int64) * lists.head + block


@triton.jit
def tile_count(count, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Tiles that ``count`` list entries make."""
    if BLOCK < TILE and TILE % BLOCK == 0:
        return (count + TILE // BLOCK - 1) // (TILE // BLOCK)
    else:
        return count * ((BLOCK + TILE - 1) // TILE)


@triton.jit
def locate(entries, count, step, valid, BLOCK: tl.constexpr, TILE: tl.constexpr, PARTIAL: tl.constexpr):
    """Which keys tile number ``step`` of a list holds: (first token, offsets from it, validity)."""
    lane = tl.arange(0, TILE)
    if BLOCK < TILE and TILE % BLOCK == 0:
        entry = step * (TILE // BLOCK) + lane // BLOCK
        live = entry < count
        block = tl.load(entries + entry, mask=live, other=0)
        if PARTIAL:
            live = live & (lane % BLOCK < tl.load(valid + block, mask=live, other=0))
        # Token 0, but known only in the loop: see the kernels' use of `first >> 31`.
        zero = tl.load(entries + step * (TILE // BLOCK)) >> 31
        return zero, block * BLOCK + lane % BLOCK, live
    else:
        SUB: tl.constexpr = (BLOCK + TILE - 1) // TILE
        block = tl.load(entries + step // SUB)
        slot = (step % SUB) * TILE + lane
        if PARTIAL:
            live = slot < tl.load(valid + block)
        else:
            live = slot < BLOCK
        return block * BLOCK + (step % SUB) * TILE, lane, live


@triton.jit
def load_keys(x, batch, head, first, offset, ok, BLOCK: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
              DP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The (TILE, DP) keys or values that :func:`locate` found."""
    if BLOCK < TILE and TILE % BLOCK == 0:
        columns = tl.arange(0, DP)
        at = base(x, batch, head, first) + offset.to(tl.int64)[:, None] * x.token + columns[None, :]
        return tl.load(at, mask=ok[:, None] & (columns < D)[None, :], other=0.0)
    else:
        return load_tile(base(x, batch, head, first), x.token, ok, TILE, D, DP, MASKED)


@triton.jit
def _rule_allows(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES: tl.constexpr):
    inside = q_ok & k_ok
    for axis in tl.static_range(AXES):
        pos = tl.load(rule.k_pos + axis * rule.slots_k + k_tokens, mask=k_ok, other=0)
        lo = tl.load(rule.q_lo + axis * rule.slots_q + q_tokens, mask=q_ok, other=0)
        hi = tl.load(rule.q_hi + axis * rule.slots_q + q_tokens, mask=q_ok, other=0)
        inside = inside & (lo <= pos) & (pos < hi)
    if rule.radius2 is not None:
        distance = tl.zeros_like(inside.to(tl.int32))
        for axis in tl.static_range(AXES):
            pos = tl.load(rule.k_pos + axis * rule.slots_k + k_tokens, mask=k_ok, other=0)
            own = tl.load(rule.q_pos + axis * rule.slots_q + q_tokens, mask=q_ok, other=0)
            distance += (own - pos) * (own - pos)
        inside = inside & (distance < rule.radius2)
    if rule.k_bit is not None:
        bit = tl.load(rule.k_bit + batch.to(tl.int64) * rule.bit_batch + k_tokens, mask=k_ok, other=0)
        everything = tl.load(rule.q_all + q_tokens, mask=q_ok, other=0)
        window = tl.load(rule.q_window + q_tokens, mask=q_ok, other=0)
        inside = ((everything & bit) != 0) | (((window & bit) != 0) & inside)
    return inside


@triton.jit
def visible(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES: tl.constexpr):
    """Mask of a partial tile: validity and the rule. Queries and keys come as a column and a row, either way round."""
    if rule is None:
        return q_ok & k_ok
    else:
        return _rule_allows(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES)
