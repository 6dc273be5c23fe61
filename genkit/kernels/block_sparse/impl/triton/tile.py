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


# What decides about the pairs of a partial block.
NO_MASK = tl.constexpr(0)
RULE = tl.constexpr(1)
BITS = tl.constexpr(2)
WORD = tl.constexpr(32)  # key slots whose bits share a word


class View(NamedTuple):
    """A (B, N, H, D) tensor with unit stride along D: pointer and the other strides (0 where broadcast)."""

    ptr: Any
    batch: Any
    token: Any
    head: Any


class Lists(NamedTuple):
    """For every (batch, head, block): how many blocks of the other side it visits and which. ``batch`` and ``head`` are
    row strides, 0 where the lists are shared. Full entries need no mask; partial ones are checked token by token.
    ``part_count`` is None in a plan without partial blocks, ``part_tile`` (the bit tile of each entry) in one without
    bit tiles."""

    full_count: Any
    full_index: Any
    full_width: Any
    part_count: Any
    part_index: Any
    part_width: Any
    part_tile: Any
    batch: Any
    head: Any


class Tokens(NamedTuple):
    """Lengths, and how many real tokens each block holds."""

    n_q: Any
    n_k: Any
    q_valid: Any
    k_valid: Any


class RuleTables(NamedTuple):
    """The mask specification of partial blocks: axis-major (A, N) int32 tables, None where a part of it is unused.

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


class Tables(NamedTuple):
    """Everything a kernel reads of a plan and of a bias. ``mask`` is a :class:`RuleTables`, the words of bit tiles, or
    None; ``bias`` is a record of the bias file or None."""

    lists: Lists
    tokens: Tokens
    mask: Any
    bias: Any


class Call(NamedTuple):
    """Numbers of a call: factor of the scores, query heads, query heads per key head."""

    scale: Any
    heads: Any
    group: Any


class Shape(NamedTuple):
    """What a kernel is compiled for: channels and these padded; tokens of the plan's blocks and of the tiles; what
    decides about partial blocks, and its axes; kind of the bias, its rank or number of axes, and that padded; pipeline
    stages; whether every query block is whole."""

    D: int
    DP: int
    BLOCK_Q: int
    BLOCK_K: int
    TILE_Q: int
    TILE_K: int
    MASK: int
    AXES: int
    BIAS: int
    SIZE: int
    WIDTH: int
    STAGES: int
    EVEN_Q: bool


class Head(NamedTuple):
    """Where a program works: batch entry, query head, key head."""

    batch: Any
    query: Any
    key: Any


class Side(NamedTuple):
    """The queries or keys of a tile: tokens, slots in their block, and which of them exist."""

    tokens: Any
    slots: Any
    ok: Any


class Entries(NamedTuple):
    """One list of blocks: where its entries and their bit tiles are, and how many."""

    index: Any
    tile: Any
    count: Any


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
def full_entries(lists, head, block):
    """The full blocks that a block visits."""
    row = head.batch.to(tl.int64) * lists.batch + head.query.to(tl.int64) * lists.head + block
    return Entries(lists.full_index + row * lists.full_width, None, tl.load(lists.full_count + row))


@triton.jit
def partial_entries(lists, head, block, MASK: tl.constexpr):
    """The partial blocks that a block visits."""
    row = head.batch.to(tl.int64) * lists.batch + head.query.to(tl.int64) * lists.head + block
    at = row * lists.part_width
    if MASK == BITS:
        return Entries(lists.part_index + at, lists.part_tile + at, tl.load(lists.part_count + row))
    else:
        return Entries(lists.part_index + at, None, tl.load(lists.part_count + row))


@triton.jit
def tile_count(count, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Tiles that ``count`` list entries make."""
    if BLOCK < TILE and TILE % BLOCK == 0:
        return (count + TILE // BLOCK - 1) // (TILE // BLOCK)
    else:
        return count * ((BLOCK + TILE - 1) // TILE)


@triton.jit
def locate(entries, step, valid, BLOCK: tl.constexpr, TILE: tl.constexpr, PARTIAL: tl.constexpr):
    """Which keys tile number ``step`` of a list holds: (first token, offsets from it, validity)."""
    lane = tl.arange(0, TILE)
    if BLOCK < TILE and TILE % BLOCK == 0:
        entry = step * (TILE // BLOCK) + lane // BLOCK
        live = entry < entries.count
        block = tl.load(entries.index + entry, mask=live, other=0)
        if PARTIAL:
            live = live & (lane % BLOCK < tl.load(valid + block, mask=live, other=0))
        # Token 0, but known only in the loop: see the kernels' use of `first >> 31`.
        zero = tl.load(entries.index + step * (TILE // BLOCK)) >> 31
        return zero, block * BLOCK + lane % BLOCK, live
    else:
        SUB: tl.constexpr = (BLOCK + TILE - 1) // TILE
        block = tl.load(entries.index + step // SUB)
        slot = (step % SUB) * TILE + lane
        if PARTIAL:
            live = slot < tl.load(valid + block)
        else:
            live = slot < BLOCK
        return block * BLOCK + (step % SUB) * TILE, lane, live


@triton.jit
def key_tiles(entries, step, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """(bit tile, slot in its block) of every key of tile number ``step`` of a list."""
    lane = tl.arange(0, TILE)
    if BLOCK < TILE and TILE % BLOCK == 0:
        entry = step * (TILE // BLOCK) + lane // BLOCK
        return tl.load(entries.tile + entry, mask=entry < entries.count, other=0), lane % BLOCK
    else:
        SUB: tl.constexpr = (BLOCK + TILE - 1) // TILE
        return tl.load(entries.tile + step // SUB + tl.zeros_like(lane)), (step % SUB) * TILE + lane


@triton.jit
def load_keys(x, head, first, offset, ok, SHAPE: tl.constexpr, MASKED: tl.constexpr):
    """The (TILE_K, DP) keys or values that :func:`locate` found."""
    if SHAPE.BLOCK_K < SHAPE.TILE_K and SHAPE.TILE_K % SHAPE.BLOCK_K == 0:
        columns = tl.arange(0, SHAPE.DP)
        at = base(x, head.batch, head.key, first) + offset.to(tl.int64)[:, None] * x.token + columns[None, :]
        return tl.load(at, mask=ok[:, None] & (columns < SHAPE.D)[None, :], other=0.0)
    else:
        return load_tile(base(x, head.batch, head.key, first), x.token, ok, SHAPE.TILE_K, SHAPE.D, SHAPE.DP, MASKED)


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
def bits_show(words, tile, q_slots, k_slots, ok, SHAPE: tl.constexpr):
    """The bits of pairs. ``tile`` and the slots are of shapes that broadcast to a tile; ``ok`` is which pairs exist."""
    WIDTH: tl.constexpr = (SHAPE.BLOCK_K + WORD - 1) // WORD
    at = words + tile.to(tl.int64) * (SHAPE.BLOCK_Q * WIDTH) + q_slots * WIDTH + k_slots // WORD
    return ok & (((tl.load(at, mask=ok, other=0) >> (k_slots % WORD)) & 1) != 0)


@triton.jit
def visible(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES: tl.constexpr, MASK: tl.constexpr):
    """Mask of a partial tile without bits: validity and the mask specification. Queries and keys come as a column and a
    row, either way round."""
    if MASK == NO_MASK:
        return q_ok & k_ok
    else:
        return _rule_allows(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES)
