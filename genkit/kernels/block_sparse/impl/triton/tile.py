"""What the Triton kernels of the block-sparse operator share: argument records and the arithmetic of one tile.

A plan block may be larger than a kernel tile: a block of BLOCK tokens is executed as ceil(BLOCK / TILE) tiles. Blocks
smaller than a tile that divide it are packed, several list entries to a tile. Offsets inside a tile are 32-bit,
everything that can grow with the sequence or the batch is 64-bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from genkit.kernels.channels import Parts
from genkit.kernels.channels.triton import load_bulk, load_parts, store_parts

# Masks and exponents live in base 2: exp2 is one instruction, exp is two.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# What decides about the pairs of a partial block: nothing but which tokens exist, a mask specification read axis by
# axis, bit tiles, or a mask specification packed into one word per token.
NO_MASK = tl.constexpr(0)
RULE = tl.constexpr(1)
BITS = tl.constexpr(2)
BOX = tl.constexpr(3)
WORD = tl.constexpr(32)  # key slots whose bits share a word

# The lists of a plan: full entries need no mask, ragged ones only lack the keys behind the end of a block, and the
# pairs of the rest are decided one by one.
FULL = tl.constexpr(0)
RAGGED = tl.constexpr(1)
MIXED = tl.constexpr(2)
# An entry of a list that query heads share: the number of the head above these bits of the query block.
MEMBER = tl.constexpr(24)
MEMBER_BLOCK = tl.constexpr((1 << 24) - 1)


class View(NamedTuple):
    """A (B, N, H, D) tensor with unit stride along D: pointer and the other strides (0 where broadcast)."""

    ptr: Any
    batch: Any
    token: Any
    head: Any


class Lists(NamedTuple):
    """For every (batch, head, block): how many blocks of the other side it visits and which. ``batch`` and ``head`` are
    row strides, 0 where the lists are shared. Full entries need no mask. Of the partial ones the first ``ragged_count``
    are only ragged, the rest is checked token by token.

    ``part_count`` is None in a plan without partial blocks, ``ragged_count`` in one where either none or every partial
    block is only ragged (which of the two, the kind of mask tells), ``part_tile`` (the bit tile of each entry) in one
    without bit tiles.

    ``chain`` is None where every list has ``full_width`` places. Else lists lie one behind the other, ``full_width``
    entries for every (batch, head), whose strides then count these; ``full_count`` holds where each begins, ``chain``
    numbers per (batch, head), and there are no partial ones."""

    full_count: Any
    full_index: Any
    full_width: Any
    part_count: Any
    part_index: Any
    part_width: Any
    part_tile: Any
    ragged_count: Any
    batch: Any
    head: Any
    chain: Any = None


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


class BoxTables(NamedTuple):
    """A mask specification in one int32 word per token, see :mod:`genkit.kernels.block_sparse.impl.triton.boxes`.

    ``q_low``, ``q_high`` (slots of queries,); ``k_low``, ``k_high`` (B|1, slots of keys), the latter None where it is
    ``k_low | guard``; ``guard``, the highest bit of every field; the stride of the batch, 0 where it is shared.
    """

    q_low: Any
    q_high: Any
    k_low: Any
    k_high: Any
    guard: Any
    batch: Any


class Tables(NamedTuple):
    """Everything a kernel reads of a plan and of a bias. ``mask`` is a :class:`RuleTables`, a :class:`BoxTables`, the
    words of bit tiles, or None; ``bias`` is a record of the bias file or None."""

    lists: Lists
    tokens: Tokens
    mask: Any
    bias: Any


class Steps(NamedTuple):
    """What one step of whole-number queries and keys stands for: (B, H, Nq) and (B, Hk, Nk) float32, contiguous."""

    queries: Any
    keys: Any


class Call(NamedTuple):
    """Numbers of a call: factor of the scores, query heads, query heads per key head; ``steps`` is a :class:`Steps`
    where queries and keys are int8, else None."""

    scale: Any
    heads: Any
    group: Any
    steps: Any = None


class Shape(NamedTuple):
    """What a kernel is compiled for: channels and the parts they are taken in; tokens of the plan's blocks and of the
    tiles; what decides about partial blocks, and its axes; kind of the bias, its rank or number of axes, and that
    padded; pipeline stages, and whether copies, products and softmax have warps of their own; whether memory holds a
    token for every slot of every query block, and of every key block; whether the factor of the scores is positive;
    whether query heads share key heads; whether dK and dV have a program each; whether queries, keys and values are
    float32."""

    D: int
    PARTS: Parts
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
    SPECIALISED: bool
    EVEN_Q: bool
    EVEN_K: bool
    POSITIVE: bool
    GROUPED: bool
    APART: bool
    FLOAT32: bool


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
def load_tile(
    pointer, stride, mask, TILE: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Parts of a tile of consecutive tokens from ``pointer``; channels beyond D and masked rows are 0."""
    return load_parts(pointer + tl.arange(0, TILE) * stride, mask, D, PARTS, MASKED)


@triton.jit
def store_tile(pointer, stride, tiles, mask, TILE: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr):
    """Inverse of :func:`load_tile`."""
    store_parts(pointer + tl.arange(0, TILE) * stride, tiles, mask, D, PARTS)


@triton.jit
def list_entries(lists, head, block, LIST: tl.constexpr, MASK: tl.constexpr):
    """One of the lists of blocks that a block visits."""
    row = head.batch.to(tl.int64) * lists.batch + head.query.to(tl.int64) * lists.head + block
    if lists.chain is not None:
        line = row - block
        first = tl.load(lists.full_count + line * lists.chain + block)
        past = tl.load(lists.full_count + line * lists.chain + block + 1)
        return Entries(lists.full_index + line * lists.full_width + first, None, past - first)
    elif LIST == FULL:
        return Entries(lists.full_index + row * lists.full_width, None, tl.load(lists.full_count + row))
    else:
        at, tile = row * lists.part_width, None
        first, past = 0, tl.load(lists.part_count + row)
        if LIST == RAGGED:
            if lists.ragged_count is not None:
                past = tl.load(lists.ragged_count + row)
        else:
            if lists.ragged_count is not None:
                first = tl.load(lists.ragged_count + row)
            if MASK == BITS:
                tile = lists.part_tile + at
        return Entries(lists.part_index + at + first, tile, past - first)


@triton.jit
def tile_count(count, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Tiles that ``count`` list entries make."""
    if BLOCK < TILE and TILE % BLOCK == 0:
        return (count + TILE // BLOCK - 1) // (TILE // BLOCK)
    else:
        return count * ((BLOCK + TILE - 1) // TILE)


@triton.jit
def read_entry(entries, step, steps, BLOCK: tl.constexpr, TILE: tl.constexpr, PACKS: tl.constexpr):
    """The (block, bit tile) of tile number ``step`` of a list, or of every key of it where blocks are packed (never
    with ``PACKS`` off). The second is the block again in lists without bit tiles.

    The kernels read it one step early. A load whose address another load of the same step gives leaves the pipeline a
    stage less, and then the wait before a step waits for every copy under way instead of the oldest ones.
    """
    if PACKS and BLOCK < TILE and TILE % BLOCK == 0:
        entry = step * (TILE // BLOCK) + tl.arange(0, TILE) // BLOCK
        live = entry < entries.count
        block = tl.load(entries.index + entry, mask=live, other=0)
        if entries.tile is None:
            return block, block
        else:
            return block, tl.load(entries.tile + entry, mask=live, other=0)
    else:
        entry = tl.maximum(tl.minimum(step, steps - 1), 0) // ((BLOCK + TILE - 1) // TILE)
        block = tl.load(entries.index + entry)
        if entries.tile is None:
            return block, block
        else:
            return block, tl.load(entries.tile + entry)


@triton.jit
def locate(entries, block, step, tokens, BLOCK: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr):
    """Which keys tile number ``step`` of a list holds, ``block`` being its list entry: (first token, offsets from it,
    which of them the plan has, which of them are in memory)."""
    lane = tl.arange(0, TILE)
    if BLOCK < TILE and TILE % BLOCK == 0:
        live = step * (TILE // BLOCK) + lane // BLOCK < entries.count
        if LIST != FULL:
            live = live & (lane % BLOCK < tl.load(tokens.k_valid + block, mask=live, other=0))
        # Token 0, but known only in the loop: see the kernels' use of `first >> 31`.
        zero = tl.load(entries.index + step * (TILE // BLOCK)) >> 31
        return zero, block * BLOCK + lane % BLOCK, live, live
    else:
        start = (step % ((BLOCK + TILE - 1) // TILE)) * TILE
        first = block * BLOCK + start
        live = start + lane < BLOCK
        held = live
        if LIST != FULL:
            live = start + lane < tl.load(tokens.k_valid + block)
            held = held & (first + lane < tokens.n_k)
        return first, lane, live, held


@triton.jit
def key_bits(tables, queries, tile, step, q_ok, k_ok, SHAPE: tl.constexpr):
    """The bits of tile number ``step`` of a list for queries as rows. ``tile`` is its bit tile, or that of every key
    where blocks are packed."""
    slots = key_slots(step, SHAPE.BLOCK_K, SHAPE.TILE_K)
    if SHAPE.BLOCK_K < SHAPE.TILE_K and SHAPE.TILE_K % SHAPE.BLOCK_K == 0:
        return packed_bits_show(tables.mask, tile[None, :], queries.slots[:, None], slots[None, :], q_ok & k_ok, SHAPE)
    else:
        first = (step % ((SHAPE.BLOCK_K + SHAPE.TILE_K - 1) // SHAPE.TILE_K)) * SHAPE.TILE_K
        seen = bits_show(tables.mask, tile, queries.slots[:, None], slots[None, :], first, q_ok, SHAPE.TILE_K, SHAPE)
        return seen & k_ok


@triton.jit
def pairs_seen(tables, window, queries, head, own, other, own_ok, other_ok, tile, step, SHAPE: tl.constexpr):
    """Which pairs of a partial block the plan shows, queries as rows. ``window`` is what a packed rule says of them,
    ``own`` and ``other`` are the tokens; ``tile`` and ``step`` say where the bits of the block are."""
    if SHAPE.MASK == BOX:
        k_low, k_high = box_keys(tables.mask, head.batch, other)
        seen = boxes_touch(tables.mask.guard, window[0][:, None], window[1][:, None], k_low, k_high)
        if SHAPE.BLOCK_K % SHAPE.TILE_K != 0:
            seen = seen & other_ok
    elif SHAPE.MASK == BITS:
        seen = key_bits(tables, queries, tile, step, own_ok, other_ok, SHAPE)
    else:
        seen = rule_allows(tables.mask, head.batch, own, other, own_ok, other_ok, SHAPE.AXES)
    return seen


@triton.jit
def key_slots(step, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Slot of every key of tile number ``step`` of a list in its block."""
    lane = tl.arange(0, TILE)
    if BLOCK < TILE and TILE % BLOCK == 0:
        return lane % BLOCK
    else:
        return (step % ((BLOCK + TILE - 1) // TILE)) * TILE + lane


@triton.jit
def load_keys(x, bulk, head, first, offset, held, SHAPE: tl.constexpr, MASKED: tl.constexpr):
    """The TILE_K keys or values that :func:`locate` found, in parts; 0 where memory holds none. ``bulk`` are their
    descriptors or None."""
    if bulk is not None:
        return load_bulk(bulk, head.batch, head.key, first, SHAPE.TILE_K, SHAPE.PARTS)
    elif SHAPE.BLOCK_K < SHAPE.TILE_K and SHAPE.TILE_K % SHAPE.BLOCK_K == 0:
        at = base(x, head.batch, head.key, first) + offset.to(tl.int64) * x.token
        return load_parts(at, held, SHAPE.D, SHAPE.PARTS, True)
    else:
        at = base(x, head.batch, head.key, first)
        return load_tile(at, x.token, held, SHAPE.TILE_K, SHAPE.D, SHAPE.PARTS, MASKED)


@triton.jit
def rule_allows(rule, batch, q_tokens, k_tokens, q_ok, k_ok, AXES: tl.constexpr):
    """Which pairs a mask specification shows, axis by axis. Queries and keys come as a column and a row, either way
    round."""
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
def bits_show(words, tile, q_slots, k_slots, k_first, q_ok, TILE_K: tl.constexpr, SHAPE: tl.constexpr):
    """The bits of the pairs of one bit tile, TILE_K keys from slot ``k_first`` on. Queries and keys come as a column
    and a row, either way round. A query's words are read once each, not once for every pair."""
    WIDTH: tl.constexpr = (SHAPE.BLOCK_K + WORD - 1) // WORD
    line = words + tile.to(tl.int64) * (SHAPE.BLOCK_Q * WIDTH) + q_slots * WIDTH + k_first // WORD
    found = tl.load(line, mask=q_ok, other=0)
    for word in tl.static_range(1, TILE_K // WORD):
        more = tl.load(line + word, mask=q_ok & (k_first // WORD + word < WIDTH), other=0)
        found = tl.where((k_slots - k_first) // WORD == word, more, found)
    return ((found >> (k_slots % WORD)) & 1) != 0


@triton.jit
def packed_bits_show(words, tile, q_slots, k_slots, ok, SHAPE: tl.constexpr):
    """The bits of pairs whose keys are of several blocks, ``tile`` and ``k_slots`` being a row; ``ok`` is which pairs
    exist."""
    WIDTH: tl.constexpr = (SHAPE.BLOCK_K + WORD - 1) // WORD
    at = words + tile.to(tl.int64) * (SHAPE.BLOCK_Q * WIDTH) + q_slots * WIDTH + k_slots // WORD
    return ok & (((tl.load(at, mask=ok, other=0) >> (k_slots % WORD)) & 1) != 0)


@triton.jit
def boxes_touch(guard, q_low, q_high, k_low, k_high):
    """Which pairs of packed windows and positions meet: two subtractions do all axes at once, and a field that goes
    below zero loses its guard bit. Queries and keys come as a column and a row, either way round."""
    return ((k_high - q_low) & (q_high - k_low) & guard) == guard


@triton.jit
def box_queries(rule, tokens):
    """Packed windows of queries."""
    return tl.load(rule.q_low + tokens), tl.load(rule.q_high + tokens)


@triton.jit
def box_keys(rule, batch, tokens):
    """Packed positions of keys; those that do not exist have one that no window holds."""
    line = batch.to(tl.int64) * rule.batch
    low = tl.load(rule.k_low + line + tokens)
    if rule.k_high is None:
        return low, low | rule.guard
    else:
        return low, tl.load(rule.k_high + line + tokens)
