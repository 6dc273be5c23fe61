"""Triton kernels of lists: selection in rows without a sort, compaction of a mask, and lists per column.

Selection looks for the least score that is kept, a bit of it at a time from the highest on: how many scores of the row
reach what is known of it with this bit set? Scores are compared as whole numbers of the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genkit.kernels.block_lists.lists import WORD as ROWS_OF_A_WORD

WORD = tl.constexpr(ROWS_OF_A_WORD)
LOWEST = tl.constexpr(-(2**31))
REST = tl.constexpr(2**31 - 1)
MASS_BITS = tl.constexpr(29)


@triton.jit
def _load(row, forced, column, n):
    """Scores at some columns of some rows, NaN as inf and -0 as 0, which of them are inside and kept in any case, and
    which others may be."""
    first, last, held = forced
    inside = column < n
    score = tl.load(row + column, mask=inside, other=-float("inf"))
    score = tl.where(score != score, float("inf"), score)
    score = tl.where(score == 0.0, 0.0, score)
    kept = (column >= first) & (column < last)
    if held is not None:
        kept = kept | (tl.load(held + column, mask=inside, other=0) != 0)
    kept = kept & inside
    return score, kept, inside & (kept == 0) & (score != -float("inf"))


@triton.jit
def _key(score):
    """Whole numbers in the order of the scores."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ REST, bits)


@triton.jit
def _weight(score, top):
    """Masses as whole numbers, scaled by a power of two; where the largest is infinite only infinite ones count."""
    score = tl.maximum(score, 0.0)
    exponent = tl.maximum(top.to(tl.int32, bitcast=True) >> 23, MASS_BITS)
    factor = ((254 - (exponent - MASS_BITS)) << 23).to(tl.float32, bitcast=True)
    endless = score == float("inf")
    scaled = (tl.where(endless, 0.0, score) * factor).to(tl.int64)
    return tl.where(top == float("inf"), endless.to(tl.int64), scaled)


@triton.jit
def _reached(row, forced, least, top, n, ROWS: tl.constexpr, TILE: tl.constexpr, MASS: tl.constexpr):
    """(rows, 1) int64: how many others have a key of at least ``least``, or their mass."""
    total = tl.zeros([ROWS, 1], tl.int64)
    for start in range(0, n, TILE):
        column = start + tl.arange(0, TILE)[None, :]
        score, _, others = _load(row, forced, column, n)
        here = others & (_key(score) >= least)
        if MASS:
            total += tl.sum(tl.where(here, _weight(score, top), 0), 1, keep_dims=True)
        else:
            total += tl.sum(here.to(tl.int32), 1, keep_dims=True).to(tl.int64)
    return total


@triton.jit
def _search(row, forced, wanted, top, n, ROWS: tl.constexpr, TILE: tl.constexpr, MASS: tl.constexpr):
    """(rows, 1) int32: the largest key at which the others that have it or more are ``wanted``, or weigh so much."""
    found, bit = tl.zeros([ROWS, 1], tl.int32), tl.full([ROWS, 1], LOWEST, tl.int32)
    for _ in range(32):
        more = found | bit
        enough = _reached(row, forced, more ^ LOWEST, top, n, ROWS, TILE, MASS) >= wanted
        found = tl.where(enough, more, found)
        bit = (bit >> 1) & REST
    return found ^ LOWEST


@triton.jit
def _mass_wanted(row, forced, mass, n, ROWS: tl.constexpr, TILE: tl.constexpr):
    """(rows, 1) int64: how many others it takes until the row's mass is reached."""
    top = tl.zeros([ROWS, 1], tl.float32)
    for start in range(0, n, TILE):
        score, kept, others = _load(row, forced, start + tl.arange(0, TILE)[None, :], n)
        top = tl.maximum(top, tl.max(tl.where(kept | others, score, 0.0), 1, keep_dims=True))
    held, total = tl.zeros([ROWS, 1], tl.int64), tl.zeros([ROWS, 1], tl.int64)
    for start in range(0, n, TILE):
        score, kept, others = _load(row, forced, start + tl.arange(0, TILE)[None, :], n)
        weight = _weight(score, top)
        held += tl.sum(tl.where(kept, weight, 0), 1, keep_dims=True)
        total += tl.sum(tl.where(kept | others, weight, 0), 1, keep_dims=True)
    share = (tl.zeros([ROWS, 1], tl.float32) + mass).to(tl.float64)
    need = tl.ceil(total.to(tl.float64) * share).to(tl.int64) - held
    least = _search(row, forced, need, top, n, ROWS, TILE, True)
    above, at_least = tl.zeros([ROWS, 1], tl.int64), tl.zeros([ROWS, 1], tl.int64)
    gained = tl.zeros([ROWS, 1], tl.int64)
    level = tl.zeros([ROWS, 1], tl.int64)
    for start in range(0, n, TILE):
        score, _, others = _load(row, forced, start + tl.arange(0, TILE)[None, :], n)
        key, weight = _key(score), _weight(score, top)
        higher, same = others & (key > least), others & (key == least)
        above += tl.sum(higher.to(tl.int32), 1, keep_dims=True).to(tl.int64)
        at_least += tl.sum(same.to(tl.int32), 1, keep_dims=True).to(tl.int64)
        gained += tl.sum(tl.where(higher, weight, 0), 1, keep_dims=True)
        level = tl.maximum(level, tl.max(tl.where(same, weight, 0), 1, keep_dims=True))
    # Of those that weigh the same as the last one only as many as it takes. There are fewer than 2**22 of them, so
    # that a rounded quotient is off by one at most; a division of whole numbers would call a function with a stack.
    missing = need - gained
    last = (missing.to(tl.float32) / tl.maximum(level, 1).to(tl.float32)).to(tl.int64)
    last = tl.where(last * level < missing, last + 1, last)
    last = tl.where((last - 1) * level >= missing, last - 1, last)
    return tl.where(need > 0, above + tl.minimum(last, at_least), 0)


@triton.jit
def select_kernel(
    scores, s_batch, s_head, s_row, first, last, held, count, index, rows, n, width, heads, mass, floor, cap,
    MASS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``count`` (B, H, M) and ``index`` (B, H, M, W), ascending, 0 beyond the count, of the kept columns of ROWS rows.

    Grid: (row tiles, B * H). ``scores`` float32 by its strides, columns dense; ``first`` and ``last`` (M,) and ``held``
    (C,) bytes or None say what is kept in any case. Others are kept until there are ``cap``; with MASS only until the
    row's mass is reached, but ``floor`` at least. Ties go to the lower column. An entry is the place of a score in its
    row and is written at a place below ``width``: neither can be outside.
    """
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    live = number < rows
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    row = scores + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head
    row = row + tl.where(live, number, 0).to(tl.int64) * s_row
    begin, end = tl.load(first + number, mask=live, other=0), tl.load(last + number, mask=live, other=0)
    forced = begin, end, held

    mine = tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, n, TILE):
        _, kept, _ = _load(row, forced, start + tl.arange(0, TILE)[None, :], n)
        mine += tl.sum(kept.to(tl.int32), 1, keep_dims=True)
    room = tl.maximum(cap - mine, 0)
    if MASS:
        wanted = _mass_wanted(row, forced, mass, n, ROWS, TILE).to(tl.int32)
        room = tl.minimum(tl.maximum(wanted, floor - mine), room)
    zero = tl.zeros([ROWS, 1], tl.float32)
    least = _search(row, forced, room.to(tl.int64), zero, n, ROWS, TILE, False)
    # 2**31 - 1 is no score's key: nothing reaches it
    least = tl.where(room > 0, least, REST)
    above = tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, n, TILE):
        score, _, others = _load(row, forced, start + tl.arange(0, TILE)[None, :], n)
        above += tl.sum((others & (_key(score) > least)).to(tl.int32), 1, keep_dims=True)
    room = room - above

    line = tl.program_id(1).to(tl.int64) * rows + number
    into = index + line * width
    done, ties = tl.zeros([ROWS, 1], tl.int32), tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, n, TILE):
        column = start + tl.arange(0, TILE)[None, :]
        score, kept, others = _load(row, forced, column, n)
        key = _key(score)
        same = (others & (key == least)).to(tl.int32)
        among = ties + tl.cumsum(same, 1)
        chosen = kept | (others & (key > least)) | ((same != 0) & (among <= room))
        done = _write(into, chosen, column, done, width, live)
        ties += tl.sum(same, 1, keep_dims=True)
    _finish(count + line, into, done, width, live, TILE)


@triton.jit
def _write(into, chosen, column, done, width, live):
    """Store chosen columns behind those that are there; how many there are then."""
    flag = chosen.to(tl.int32)
    at = done + tl.cumsum(flag, 1) - 1
    tl.store(into + at, column + tl.zeros_like(at), mask=chosen & (at < width) & live)
    return done + tl.sum(flag, 1, keep_dims=True)


@triton.jit
def _finish(count, into, done, width, live, TILE: tl.constexpr):
    """Store the counts, and 0 beyond them."""
    done = tl.minimum(done, width)
    tl.store(count, done, mask=live)
    for start in range(0, width, TILE):
        slot = start + tl.arange(0, TILE)[None, :]
        tl.store(into + slot, tl.zeros_like(slot + done), mask=(slot >= done) & (slot < width) & live)


@triton.jit
def mask_kernel(
    mask, m_batch, m_head, m_row, m_column, count, index, rows, n, width, heads,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Counts and lists of the columns of ROWS rows of a mask (B, H, M, C) of bytes that are not 0."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    live = number < rows
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    row = mask + batch.to(tl.int64) * m_batch + head.to(tl.int64) * m_head + number.to(tl.int64) * m_row
    line = tl.program_id(1).to(tl.int64) * rows + number
    into = index + line * width
    done = tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, n, TILE):
        column = start + tl.arange(0, TILE)[None, :]
        chosen = tl.load(row + column.to(tl.int64) * m_column, mask=live & (column < n), other=0) != 0
        done = _write(into, chosen, column, done, width, live)
    _finish(count + line, into, done, width, live, TILE)


@triton.jit
def _entries(count, index, width, rows, columns, chunks, TILE: tl.constexpr):
    """Some entries of a head's lists: their number, row, column, whether they are used, and where the word of their 32
    rows and column is."""
    head = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = (number // width).to(tl.int32)
    inside = row < rows
    used = inside & ((number % width) < tl.load(count + head * rows + row, mask=inside, other=0))
    column = tl.load(index + head * rows * width + number, mask=used, other=0)
    word = (head * chunks + row // WORD) * columns + column
    return number, row, column, inside, used, word


@triton.jit
def mark_kernel(count, index, words, width, rows, columns, chunks, TILE: tl.constexpr):
    """Set the bit of every (row, column) that is visited. Bits can be set in any order: the words come out the same."""
    _, row, _, _, used, word = _entries(count, index, width, rows, columns, chunks, TILE)
    tl.atomic_or(words + word, tl.full([TILE], 1, tl.int32) << (row % WORD), mask=used)


@triton.jit
def _ones(word):
    """Number of bits that are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24) & 0xFF


@triton.jit
def count_kernel(words, before, total, columns, chunks, TILE: tl.constexpr):
    """Per column the visits in words before each, and in all."""
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ok = column < columns
    head = tl.program_id(1).to(tl.int64)
    seen = tl.zeros([TILE], tl.int32)
    for chunk in range(0, chunks):
        at = (head * chunks + chunk) * columns + column
        tl.store(before + at, seen, mask=ok)
        seen += _ones(tl.load(words + at, mask=ok, other=0))
    tl.store(total + head * columns + column, seen, mask=ok)


@triton.jit
def fill_kernel(
    count, index, words, before, start, entry, place, width, entries, rows, columns, chunks, TILE: tl.constexpr
):  # fmt: skip
    """Write every entry's row to its place in the list of its column, and the place beside the entry."""
    head = tl.program_id(1).to(tl.int64)
    number, row, column, inside, used, word = _entries(count, index, width, rows, columns, chunks, TILE)
    earlier = (tl.full([TILE], 1, tl.int32) << (row % WORD)) - 1
    at = tl.load(start + head * (columns + 1) + column, mask=used, other=0)
    at += tl.load(before + word, mask=used, other=0)
    at += _ones(tl.load(words + word, mask=used, other=0) & earlier)
    tl.store(entry + head * entries + at, row, mask=used)
    if place is not None:
        tl.store(place + head * rows * width + number, at, mask=inside & used)
