"""Walks a plan's schedule for the CPU backend: lays heads out in memory and cuts their work into kernel calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl.cpu.schedule import Gathered, Slice, additive_mask, schedule
from genkit.kernels.inputs import unit_rows
from genkit.kernels.plan import bias_values as cpu_bias
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.block_plan import BlockPlan

# Measured with 6 and 8 heads of 64 channels and 448 to 8,192 tokens; all are per thread.
_SET_BYTES = 4 << 20  # keys and values laid out together: what stays in a level-2 cache, or near it
_CHUNK_BYTES = 8 << 20  # keys of one call of the kernel: fewer calls cost less than keys that leave the cache
_SMALL_BYTES = 1 << 20  # the same in 16 bits, where the kernel first rearranges all keys of a call, and in backward
_PAYING_VISITS = 512  # queries that see a key, from which laying heads out pays


@dataclass(frozen=True)
class Heads:
    """Some query heads of one batch entry.

    Args:
        batch, first, count: which they are.
        q: view (count, Nq, D). k, v: (key heads, Nk, D), where that pays copies in memory head by head and padded to
            whole blocks: tokens of one head that lie apart halve the speed of gathering and cost the kernel 12 %.
    """

    batch: int
    first: int
    count: int
    q: Tensor
    k: Tensor
    v: Tensor

    def of(self, x: Tensor) -> Tensor:
        """View (count, N, D') of the rows of x (B, N, H, D') that belong to these heads."""
        return x[self.batch, :, self.first : self.first + self.count].transpose(0, 1)


class Rows:
    """Rows of work: blocks of equally many queries of some heads, as they lie in tensors (heads, N, D').

    Args:
        where: (head, first query) of each, ascending.
        queries: their length.

    Attributes:
        shape: (a, b), heads and blocks when every head has the same successive blocks, else (n, 1).
    """

    def __init__(self, where: list[tuple[int, int]], queries: int):
        self.where, self.queries = where, queries
        (head, start), (last, end) = where[0], where[-1]
        heads, blocks = last - head + 1, (end - start) // queries + 1
        self.regular = (
            heads * blocks == len(where)
            and (end - start) % queries == 0
            and (
                len(where) == 1
                or where == [(head + h, start + i * queries) for h in range(heads) for i in range(blocks)]
            )
        )
        self.shape = (heads, blocks) if self.regular else (len(where), 1)
        self._at = slice(head, last + 1), slice(start, end + queries)

    def read(self, x: Tensor) -> Tensor:
        """(a, b, queries, D') of x (heads, N, D'): a view if they lie regularly."""
        if self.regular:
            return x[self._at].view(*self.shape, self.queries, x.shape[2])
        return torch.stack([x[h, s : s + self.queries] for h, s in self.where])[:, None]

    def write(self, x: Tensor, found: Tensor) -> None:
        """Write ``found`` (a, b, queries, D') to x (heads, N, D')."""
        if self.regular:
            x[self._at].view(found.shape).copy_(found)
            return
        for (h, s), row in zip(self.where, found[:, 0], strict=True):
            x[h, s : s + self.queries] = row


@dataclass(frozen=True)
class Piece:
    """One kernel call: rows of work with equally many keys.

    Args:
        rows: which; heads are counted within their :class:`Heads`.
        q, k, v: (a, b, queries | tokens, D) as ``rows.shape`` has it.
        span: (first key, last + 1, shift) when every row sees contiguous keys, each block's ``shift`` further on than
            those of the block before it, else None.
        blocks: (n, count) gathered blocks, counted through all key heads; None for contiguous keys.
        tokens: (tokens,) int64 key tokens, with a bias only.
        mask: additive (1, 1, queries, tokens) or None. dead: (1, queries) bool, queries that see no key, or None.
        adds: whether these are further keys of queries that an earlier piece served.
    """

    rows: Rows
    q: Tensor
    k: Tensor
    v: Tensor
    span: tuple[int, int, int] | None
    blocks: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    dead: Tensor | None
    adds: bool = False


class Work:
    """The inputs of one pass and the walk over its plan's schedule.

    Args:
        q, k, v: (B, N, H, D). dtype: what the kernel computes in.
        backward: whether this is the backward pass, whose calls also return gradients of all their keys.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,
        bias: Sequence[Bias],
        dtype: torch.dtype,
        backward: bool = False,
    ):
        self.plan, self.bias, self.schedule, self.dtype = plan, bias, schedule(plan), dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.group = q.shape[2] // k.shape[2]
        self.q, self.k, self.v = (unit_rows(x) for x in (q, k, v))
        self.move_keys = (
            bool(self.schedule.gathered) or q.dtype != dtype or (self.schedule.pairs >= _PAYING_VISITS * plan.n_k)
        )
        self.chunk = (_SMALL_BYTES if backward or dtype.itemsize == 2 else _CHUNK_BYTES) * torch.get_num_threads()
        self.copies: dict[str, Tensor] = {}

    # ---- heads ------------------------------------------------------------------------------------------------------

    def heads(self) -> Iterator[Heads]:
        """All heads, as many together as fit; what one set refers to is overwritten by the next."""
        key_heads = together = self.k.shape[2]
        padded = self.plan.blocks_k * self.plan.block_k
        if self.move_keys:
            fit = _SET_BYTES * torch.get_num_threads() // (2 * padded * self.k.shape[3] * self.dtype.itemsize)
            together = -(-key_heads // -(-key_heads // max(1, fit)))
        for batch in range(self.q.shape[0]):
            for low in range(0, key_heads, together):
                high = min(low + together, key_heads)
                first, last = low * self.group, high * self.group
                q = self.q[batch, :, first:last].transpose(0, 1)
                k, v = (
                    self._laid_out(name, x[batch, :, low:high].transpose(0, 1), padded)
                    for name, x in (("k", self.k), ("v", self.v))
                )
                yield Heads(batch, first, last - first, q, k, v)

    def keys_of(self, x: Tensor, heads: Heads) -> Tensor:
        """View (key heads, Nk, D) of x (B, Nk, key heads, D)."""
        low = heads.first // self.group
        return x[heads.batch, :, low : low + heads.k.shape[0]].transpose(0, 1)

    def _laid_out(self, name: str, x: Tensor, length: int) -> Tensor:
        """x (heads, N, D) itself where moving it does not pay, else a copy in the kernel's dtype, head by head and with
        zeros up to ``length``."""
        if not self.move_keys or x.is_contiguous() and length == x.shape[1] and x.dtype == self.dtype:
            return x
        if name not in self.copies:
            self.copies[name] = torch.empty(x.shape[0], length, x.shape[2], dtype=self.dtype)
            self.copies[name][:, x.shape[1] :] = 0
        copy = self.copies[name][: x.shape[0]]
        copy[:, : x.shape[1]].copy_(x)
        return copy

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def pieces(self, heads: Heads) -> Iterator[Piece]:
        """The kernel calls of a set of heads; a piece that adds to others comes after them."""
        for low, high, row in self._alike(heads):
            for item in self.schedule.slices_of(row):
                yield from self._sliced(heads, low, high, item)
        for group in self.schedule.gathered:
            yield from self._gathered(heads, group)

    def _alike(self, heads: Heads) -> Iterator[tuple[int, int, int]]:
        """Runs [low, high) of heads that share lists, and which lists these are."""
        plan = self.plan
        row = heads.batch % plan.batch * plan.heads
        if plan.heads == 1:
            yield 0, heads.count, row
        else:
            for head in range(heads.count):
                yield head, head + 1, row + heads.first + head

    def _sliced(self, heads: Heads, low: int, high: int, item: Slice) -> Iterator[Piece]:
        """The kernel calls of some heads for one slice: with a bias one by one, else heads that share a key head, or
        have their own, together."""
        queries, keys = item.stop - item.start, item.last - item.first
        step = 1 if self.bias else self._rows_at_once(heads, keys)
        together = 1 if self.bias else min(high - low, self.group if self.group > 1 else max(1, step // item.count))
        for head in range(low, high, together):
            stop = min(head + together, high)
            for block in range(0, item.count, step):
                count = min(step, item.count - block)
                start, first = item.start + block * queries, item.first + block * item.shift
                rows = Rows([(h, start + i * queries) for h in range(head, stop) for i in range(count)], queries)
                k, v = (self._windows(x, head, stop, first, keys, item.shift, count) for x in (heads.k, heads.v))
                seen = range(first, first + keys)
                tokens, mask, dead = self._mask(heads, head, item.row, start, start + queries, seen)
                span = first, first + keys, item.shift
                yield Piece(rows, self._queries(heads, rows), k, v, span, None, tokens, mask, dead)

    def _queries(self, heads: Heads, rows: Rows) -> Tensor:
        return rows.read(heads.q).to(self.dtype)

    def _windows(self, x: Tensor, head: int, stop: int, first: int, keys: int, shift: int, count: int) -> Tensor:
        """(heads, count, keys, D) view of the windows that query heads [head, stop) see."""
        low, high = head // self.group, (stop - 1) // self.group + 1
        part = x[low:high, first : first + keys + (count - 1) * shift]
        part = part[:, None] if count == 1 else part.unfold(1, keys, shift).transpose(2, 3)
        return part if high - low == stop - head else part.expand(stop - head, -1, -1, -1)

    def _rows_at_once(self, heads: Heads, keys: int) -> int:
        """Rows of work with so many keys that one call takes."""
        return max(1, self.chunk // max(1, keys * heads.k.shape[2] * self.dtype.itemsize))

    def _gathered(self, heads: Heads, group: Gathered) -> Iterator[Piece]:
        """The kernel calls of one group: rows of one head next to each other, so that its keys are still in a cache;
        one list at a time for several heads where a mask belongs to it."""
        plan = self.plan
        step = 1 if self.bias else self._rows_at_once(heads, group.tokens)
        runs = [(low, high, *group.bounds(row)) for low, high, row in self._alike(heads)]
        base = torch.arange(heads.count) // self.group * plan.blocks_k
        if group.masked or self.bias:
            for low, high, begin, end in runs:
                for at in range(begin, end):
                    for head in range(low, high, step):
                        stop = min(head + step, high)
                        rows = [(h, group.rows[at] * plan.block_q) for h in range(head, stop)]
                        yield self._gather(heads, group, rows, group.blocks[at] + base[head:stop, None])
            return
        rows = [
            (head, group.rows[at] * plan.block_q)
            for low, high, begin, end in runs
            for head in range(low, high)
            for at in range(begin, end)
        ]
        blocks = torch.cat(
            [(group.blocks[begin:end] + base[low:high, None, None]).flatten(0, 1) for low, high, begin, end in runs]
        )
        for at in range(0, len(rows), step):
            yield self._gather(heads, group, rows[at : at + step], blocks[at : at + step])

    def _gather(self, heads: Heads, group: Gathered, where: list[tuple[int, int]], blocks: Tensor) -> Piece:
        """One call for rows of work ``where`` with the key blocks (n, count)."""
        plan, tokens, mask, dead = self.plan, None, None, None
        at, width = blocks, plan.block_k
        if group.tokens < blocks.shape[1] * plan.block_k:
            at, width = self._valid_tokens(blocks), 1
        rows = Rows(where, group.queries)
        k, v = (
            self._copy(name, x, at.reshape(-1), width).view(*rows.shape, -1, x.shape[2])
            for name, x in (("K", heads.k), ("V", heads.v))
        )
        if group.masked or self.bias:
            head, start = where[0]
            own = blocks[:1] % plan.blocks_k
            row = start // plan.block_q if group.masked else None
            keys = self._valid_tokens(own)[0] if self.bias else None
            tokens, mask, dead = self._mask(heads, head, row, start, start + group.queries, keys, own[0])
        return Piece(rows, self._queries(heads, rows), k, v, None, blocks, tokens, mask, dead, group.adds)

    def _valid_tokens(self, blocks: Tensor) -> Tensor:
        """(n, tokens) valid tokens of key blocks (n, count) counted through all key heads, equally many in each row."""
        slot = torch.arange(self.plan.block_k)
        inside = slot < self.plan.k_valid[blocks % self.plan.blocks_k][..., None]
        return (blocks[..., None] * self.plan.block_k + slot)[inside].view(len(blocks), -1)

    def _copy(self, name: str, x: Tensor, at: Tensor, width: int) -> Tensor:
        """Runs of ``width`` tokens of x (key heads, N, D), in a buffer used again by the next piece."""
        source = x.view(-1, width * x.shape[2])
        size = at.shape[0] * source.shape[1]
        if name not in self.copies or self.copies[name].shape[0] < size:
            self.copies[name] = x.new_empty(size)
        return torch.index_select(source, 0, at, out=self.copies[name][:size].view(at.shape[0], -1))

    def _mask(
        self,
        heads: Heads,
        head: int,
        row: int | None,
        start: int,
        stop: int,
        keys: Tensor | range | None,
        blocks: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What hides and biases the queries [start, stop) of a head of the set.

        Args:
            row: query block whose rule decides about its key ``blocks``; None hides nothing.
            keys: key tokens, or None without a bias. blocks: (count,); None stands for those of the range ``keys``.

        Returns:
            key tokens as a tensor (only with a bias), additive mask (1, 1, queries, keys), queries that see nothing.
        """
        head += heads.first
        tokens = mask = dead = None
        if row is not None:
            if blocks is None:
                blocks = torch.arange(keys.start // self.plan.block_k, -(-keys.stop // self.plan.block_k))
            mask, dead = additive_mask(self.plan, heads.batch, head, row, blocks, stop - start, self.wide)
        if self.bias:
            tokens = torch.arange(keys.start, keys.stop) if isinstance(keys, range) else keys
            value = cpu_bias.values(self.bias, heads.batch, head, start, stop, tokens).to(self.wide)[None, None]
            mask = value if mask is None else mask + value
            gone = (mask[0] == -torch.inf).all(-1)
            dead = gone if bool(gone.any()) else None
        return tokens, mask, dead

    # ---- gradients of keys and values -------------------------------------------------------------------------------

    def accumulator(self, like: Tensor) -> Tensor:
        """Zeros (key heads, padded tokens, D) for the gradient of a set's keys or values."""
        return torch.zeros(like.shape[0], self.plan.blocks_k * self.plan.block_k, like.shape[2], dtype=self.wide)

    def add(self, total: Tensor, part: Tensor, piece: Piece) -> None:
        """Add the gradient (a, b, keys, D) of a piece's keys or values, in the order of its rows."""
        if piece.span is not None:
            first, last, shift = piece.span
            low = piece.rows.where[0][0] // self.group
            part = part if self.group == 1 else part.sum(0, keepdim=True, dtype=total.dtype)
            for block in range(part.shape[1]):
                into = total[low : low + part.shape[0], first + block * shift : last + block * shift]
                into += part[:, block]
            return
        at, width = piece.blocks, self.plan.block_k
        if part.shape[2] < at.shape[1] * width:
            at, width = self._valid_tokens(at), 1
        flat = total.view(-1, width * total.shape[2])
        flat.index_add_(0, at.reshape(-1), part.reshape(at.numel(), -1).to(total.dtype))
