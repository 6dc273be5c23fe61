"""Block-sparse attention on the CPU with torch's own flash kernel.

Keys that lie side by side are used where they are. Others are copied together for many query blocks at a time,
because a call of the kernel costs more than a copy that leaves the cache. Where neighbouring query blocks see nearly
everything, what they share is done for all of them at once. The backward pass copies keys again; dK and dV are added in
a fixed order, so results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_sparse import cpu_bias
from genkit.kernels.block_sparse.bias import Bias
from genkit.kernels.block_sparse.cpu_schedule import Gathered, Slice, additive_mask, schedule
from genkit.kernels.block_sparse.plan import BlockPlan
from genkit.kernels.inputs import unit_rows

_CHUNK_BYTES = 16 << 20  # keys copied together, per thread; 1 MiB is 10 % slower, 64 MiB no faster, measured
_PAYING_VISITS = 512  # queries per key from which rearranging the keys pays, measured
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def why_not(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (),
            needs_grad: bool = False) -> str | None:
    """Why these inputs cannot run here, or None."""
    if q.device.type != "cpu":
        return f"the tensors are on {q.device}, this backend runs on the CPU"
    return None


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 in tiles (asked of torch; a torch that cannot tell counts as no)."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask())


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernel computes in. bfloat16 stays where the processor multiplies it natively (AMX); elsewhere torch's
    bfloat16 and float16 backward kernels are several times slower than float32, so they are widened by the chunk."""
    if dtype == torch.bfloat16 and has_amx():
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class _Piece:
    """One kernel call: some (batch entry, query head) pairs, or query blocks, that have equally many keys each.

    Args:
        where: (batch, head, start) of each of the n rows of work. queries: their length.
        q, k, v: (n, 1, queries | tokens, D), or (b, h, ..., D) for slices.
        tokens: (n|1, tokens) int64 key tokens; None for gathered whole blocks without a bias.
        blocks: (n|1, count) key blocks, None for a slice.
        mask: additive (n|1, 1, queries, tokens) or None. dead: (n|1, queries) bool, queries that see no key, or None.
        adds: whether these are further keys of queries that an earlier piece served.
    """

    where: list[tuple[int, int, int]]
    queries: int
    q: Tensor
    k: Tensor
    v: Tensor
    tokens: Tensor
    blocks: Tensor | None
    mask: Tensor | None
    dead: Tensor | None
    adds: bool = False


def forward(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float,
            bias: Sequence[Bias]) -> tuple[Tensor, Tensor]:
    """out (B, Nq, H, D) like q and lse (B, H, Nq)."""
    work = _Work(q, k, v, plan, bias)
    batch, n_q, heads, width = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    kind = wide if work.schedule.merges else q.dtype
    if work.schedule.covers:
        out, lse = q.new_empty(q.shape, dtype=kind), q.new_empty((batch, heads, n_q), dtype=wide)
    else:
        out = torch.zeros(q.shape, dtype=kind)
        lse = torch.full((batch, heads, n_q), -torch.inf, dtype=wide)
    for piece in work.pieces():
        found, total = _flash(piece.q, piece.k, piece.v, attn_mask=piece.mask, scale=scale)
        if piece.dead is not None:
            found = found.masked_fill(piece.dead[:, None, :, None], 0)
            total = total.masked_fill(piece.dead[:, None], -torch.inf)
        if piece.adds:
            before = _get(out, piece, wide), _get(lse.unsqueeze(-1).transpose(1, 2), piece, wide)[..., 0]
            found, total = _merged(*before, found.to(wide), total.to(wide))
        _put(out, found, piece)
        _put(lse.unsqueeze(-1).transpose(1, 2), total.unsqueeze(-1), piece)
    return out.to(q.dtype), lse


def _merged(out: Tensor, lse: Tensor, more: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of two parts."""
    both = torch.logaddexp(lse, total)
    share = (total - both).exp_().masked_fill_(total == -torch.inf, 0)
    return torch.lerp(out, more, share.unsqueeze(-1)), both


def backward(grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
             plan: BlockPlan, scale: float, bias: Sequence[Bias]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and of every bias table that may have one."""
    work = _Work(q, k, v, plan, bias)
    grad_out = unit_rows(grad_out)
    sums = cpu_bias.gradients(bias)
    kind = work.wide if work.schedule.merges else q.dtype
    d_q = q.new_empty(q.shape, dtype=kind) if work.schedule.covers else torch.zeros(q.shape, dtype=kind)
    d_k, d_v = work.accumulator(k), work.accumulator(v)
    by_hand = grad_lse is not None or any(sums)
    if grad_lse is not None:
        # rows without a key have a constant lse: what arrives there belongs to nobody
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0)
    for piece in work.pieces():
        seen = _get(lse.unsqueeze(-1).transpose(1, 2), piece, work.wide)[..., 0]
        if piece.dead is not None:
            seen = seen.masked_fill(piece.dead[:, None], 0)
        row_grad, row_out = _get(grad_out, piece, work.dtype), _get(out, piece, work.dtype)
        if by_hand:
            extra = None if grad_lse is None else _get(grad_lse.unsqueeze(-1).transpose(1, 2), piece, work.wide)[..., 0]
            parts = _by_hand(piece, row_grad, row_out, seen, extra, scale, bias, sums)
        else:
            parts = _flash_backward(row_grad, piece.q, piece.k, piece.v, row_out, seen, 0.0, False,
                                    attn_mask=piece.mask, scale=scale)
        _put(d_q, parts[0] + _get(d_q, piece, parts[0].dtype) if piece.adds else parts[0], piece)
        work.add(d_k, parts[1], piece)
        work.add(d_v, parts[2], piece)
    tables = [table.tensors()[at] for table in bias for at in table.trainable]
    found = [total.to(table.dtype) for table, total in zip(tables, (s for part in sums for s in part), strict=True)]
    return d_q.to(q.dtype), work.finish(d_k, k), work.finish(d_v, v), found


class _Work:
    """The inputs and the walk over a plan's schedule, shared by both directions."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, bias: Sequence[Bias]):
        self.plan, self.bias, self.schedule = plan, bias, schedule(plan)
        self.dtype = compute_dtype(q.dtype)
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.q, self.group = unit_rows(q), q.shape[2] // k.shape[2]
        self.k, self.v = self._by_head(k), self._by_head(v)
        self.limit = _CHUNK_BYTES * torch.get_num_threads()
        self.copies = [torch.empty(0, dtype=self.dtype) for _ in range(2)]
        # work that differs by batch entry or head cannot share a mask
        varied = plan.rule is not None and plan.rule.k_group.shape[0] > 1
        self.split_batch = varied or bool(bias)
        self.split_heads = bool(bias)

    def _by_head(self, x: Tensor) -> Tensor:
        """Keys or values as (B, Hk, N, D): in memory head by head, padded to whole blocks, when they are visited often
        enough to pay for the copy; else a view. Scattered rows halve the speed of gathering and cost the kernel 8 %."""
        length = self.plan.blocks_k * self.plan.block_k
        view = unit_rows(x).transpose(1, 2)
        if view.is_contiguous() and x.shape[1] == length and x.dtype == self.dtype:
            return view
        if not self.schedule.gathered and self.schedule.visits < _PAYING_VISITS and x.dtype == self.dtype:
            return view
        copy = x.new_empty((x.shape[0], x.shape[2], length, x.shape[3]), dtype=self.dtype)
        copy[:, :, :x.shape[1]].copy_(view)
        copy[:, :, x.shape[1]:] = 0
        return copy

    def pieces(self) -> Iterator[_Piece]:
        for item in self.schedule.slices:
            yield from self._sliced(item)
        for group in self.schedule.gathered:
            yield from self._gathered(group)

    # ---- contiguous keys ----------------------------------------------------------------------------------------

    def _sliced(self, item: Slice) -> Iterator[_Piece]:
        batches, heads = self._spread(item.batch, item.head)
        tokens = torch.arange(item.first, item.last)[None]
        blocks = None
        if item.row is not None:
            blocks = torch.arange(item.first // self.plan.block_k, -(-item.last // self.plan.block_k))
        batch_sets = [[b] for b in batches] if self.split_batch else [batches]
        # query heads that share a key head see it through one broadcast view
        head_sets = [heads]
        if self.split_heads or self.group > 1:
            size = 1 if self.split_heads else self.group
            head_sets = [heads[i:i + size] for i in range(0, len(heads), size)]
        for bs in batch_sets:
            partial = None
            if item.row is not None:
                partial = (max(bs[0], item.batch), item.head, item.row, blocks, item.stop - item.start)
            for hs in head_sets:
                k, v = (self._keys(x, bs, hs, item.first, item.last) for x in (self.k, self.v))
                q = self.q[bs[0]:bs[-1] + 1, item.start:item.stop, hs[0]:hs[-1] + 1].transpose(1, 2).to(self.dtype)
                mask, dead = self._mask(partial, bs[0], hs[0], item.start, item.stop, tokens[0])
                where = [(b, h, item.start) for b in bs for h in hs]
                yield _Piece(where, item.stop - item.start, q, k, v, tokens, None, mask, dead)

    def _keys(self, x: Tensor, batches: list[int], heads: list[int], first: int, last: int) -> Tensor:
        """(b, h, keys, D) view of the keys of some query heads: all heads without grouping, or one group."""
        low, high = heads[0] // self.group, heads[-1] // self.group
        view = x[batches[0]:batches[-1] + 1, low:high + 1, first:last]
        return view if self.group == 1 else view.expand(-1, len(heads), -1, -1)

    # ---- gathered keys ------------------------------------------------------------------------------------------

    def _gathered(self, group: Gathered) -> Iterator[_Piece]:
        row_bytes = max(1, group.tokens * self.q.shape[3] * self.dtype.itemsize)
        step = max(1, self.limit // row_bytes)
        rows = []
        for at, (pb, ph, i) in enumerate(group.rows):
            batches, heads = self._spread(pb, ph)
            rows += [(b, h, i, at) for b in batches for h in heads]
        if self.plan.heads > 1 and not group.masked and not self.bias:
            rows.sort(key=lambda row: row[:3])
            chunks = [rows[i:i + step] for i in range(0, len(rows), step)]
        else:
            chunks = self._chunks_of_one_mask(rows, step)
        for chunk in chunks:
            yield self._gather(group, chunk)

    def _chunks_of_one_mask(self, rows: list[tuple[int, int, int, int]], step: int) -> Iterator[list]:
        """Runs of rows that share batch entry and key lists, so that one mask serves the call; one row with a bias."""
        step = 1 if self.bias else step
        start = 0
        for end in range(1, len(rows) + 1):
            full = end == len(rows) or end - start == step or rows[end][0] != rows[start][0]
            if full or rows[end][3] != rows[start][3]:
                yield rows[start:end]
                start = end

    def _gather(self, group: Gathered, chunk: list[tuple[int, int, int, int]]) -> _Piece:
        plan, slot = self.plan, torch.arange(self.plan.block_k)
        shared = all(row[3] == chunk[0][3] for row in chunk)
        blocks = group.blocks[[chunk[0][3]] if shared else [row[3] for row in chunk]]
        base = torch.tensor([b * self.k.shape[1] + h // self.group for b, h, _, _ in chunk])[:, None]
        at, width = blocks + base * plan.blocks_k, plan.block_k
        tokens = None
        ragged = group.tokens < blocks.shape[1] * plan.block_k
        if ragged or self.bias:
            tokens = blocks[:, :, None] * plan.block_k + slot
            tokens = (tokens[slot < plan.k_valid[blocks][..., None]] if ragged else tokens).view(len(blocks), -1)
        if ragged:
            at, width = tokens + base * (plan.blocks_k * plan.block_k), 1
        k, v = (self._copy(number, x, at.flatten(), width, len(chunk)) for number, x in enumerate((self.k, self.v)))
        where = [(b, h, i * plan.block_q) for b, h, i, _ in chunk]
        b, h, start = where[0]
        partial = (b, h, chunk[0][2], blocks[0], group.queries) if group.masked else None
        mask, dead = self._mask(partial, b, h, start, start + group.queries, None if tokens is None else tokens[0])
        q = _rows(self.q, where, group.queries).to(self.dtype)
        return _Piece(where, group.queries, q, k, v, tokens, blocks, mask, dead, group.adds)

    def _copy(self, number: int, x: Tensor, at: Tensor, width: int, rows: int) -> Tensor:
        """(rows, 1, keys, D): runs of ``width`` tokens side by side, in a buffer used again by the next piece."""
        source = x.view(-1, width * x.shape[3])
        size = len(at) * source.shape[1]
        if self.copies[number].numel() < size:
            self.copies[number] = x.new_empty(size)
        found = torch.index_select(source, 0, at, out=self.copies[number][:size].view(len(at), source.shape[1]))
        return found.view(rows, 1, -1, x.shape[3])

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _spread(self, batch: int, head: int) -> tuple[list[int], list[int]]:
        """The batch entries and query heads one row of the plan's lists stands for."""
        return (list(range(self.q.shape[0])) if self.plan.batch == 1 else [batch],
                list(range(self.q.shape[2])) if self.plan.heads == 1 else [head])

    def _mask(self, partial: tuple[int, int, int, Tensor, int] | None, batch: int, head: int, start: int, stop: int,
              tokens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Additive mask (1, 1, queries, tokens) of bias and hidden pairs, and the queries that see nothing.

        ``partial`` names the row of the plan whose rule decides, as ``additive_mask`` takes it; None hides nothing.
        """
        if not self.bias:
            return (None, None) if partial is None else additive_mask(self.plan, *partial, self.wide)
        mask = cpu_bias.values(self.bias, batch, head, start, stop, tokens).to(self.wide)[None, None]
        dead = None
        if partial is not None:
            hidden, dead = additive_mask(self.plan, *partial, self.wide)
            mask = mask + hidden
        return mask, dead

    def accumulator(self, x: Tensor) -> Tensor:
        """Zeros (B, Hk, blocks_k, block_k, D) for the gradient of keys or values."""
        return torch.zeros(x.shape[0], x.shape[2], self.plan.blocks_k, self.plan.block_k, x.shape[3], dtype=self.wide)

    def add(self, total: Tensor, part: Tensor, piece: _Piece) -> None:
        """Add the gradient of a piece's keys or values, in the order of its rows."""
        if piece.blocks is None:
            heads = part.shape[1]
            b, h, _ = piece.where[0]
            into = total.flatten(2, 3)[b:b + part.shape[0], h // self.group:(h + heads - 1) // self.group + 1,
                                       piece.tokens[0, 0]:piece.tokens[0, -1] + 1]
            into += part if self.group == 1 else part.sum(1, keepdim=True)
            return
        rows, count = len(piece.where), piece.blocks.shape[1]
        part = part.reshape(rows, -1, part.shape[-1])
        if part.shape[1] < count * self.plan.block_k:
            valid = (torch.arange(self.plan.block_k) < self.plan.k_valid[piece.blocks][..., None]).flatten(1)
            wide = part.new_zeros(rows, count * self.plan.block_k, part.shape[2])
            wide[valid.expand(rows, -1)] = part.reshape(-1, part.shape[2])
            part = wide
        base = torch.tensor([b * total.shape[1] + h // self.group for b, h, _ in piece.where]) * self.plan.blocks_k
        index = (piece.blocks + base[:, None]).flatten()
        flat = total.view(-1, total.shape[3] * total.shape[4])
        flat.index_add_(0, index, part.reshape(len(index), -1).to(total.dtype))

    def finish(self, total: Tensor, like: Tensor) -> Tensor:
        """The accumulated gradient in the shape and dtype of the input."""
        return total.flatten(2, 3)[:, :, :like.shape[1]].transpose(1, 2).to(like.dtype).contiguous()


def _view(x: Tensor, where: list[tuple[int, int, int]], queries: int) -> Tensor | None:
    """Rows of work as one view (n, 1, queries, D) of x (B, N, H, D), when they lie regularly: successive heads of one
    block of queries, or successive blocks of one head."""
    b, h, start = where[0]
    same = {(bb, s) for bb, _, s in where} == {(b, start)}
    if same and [hh for _, hh, _ in where] == list(range(h, h + len(where))):
        return x[b, start:start + queries, h:h + len(where)].transpose(0, 1)[:, None]
    if where == [(b, h, start + i * queries) for i in range(len(where))]:
        return x[b, start:start + len(where) * queries, h].unflatten(0, (len(where), queries))[:, None]
    return None


def _rows(x: Tensor, where: list[tuple[int, int, int]], queries: int) -> Tensor:
    view = _view(x, where, queries)
    return torch.stack([x[b, s:s + queries, h] for b, h, s in where])[:, None] if view is None else view


def _get(x: Tensor, piece: _Piece, dtype: torch.dtype) -> Tensor:
    """Rows of x (B, N, H, D') that belong to a piece, shaped like its queries."""
    if piece.blocks is None:
        b, h, start = piece.where[0]
        n, m = piece.q.shape[:2]
        return x[b:b + n, start:start + piece.queries, h:h + m].transpose(1, 2).to(dtype)
    return _rows(x, piece.where, piece.queries).to(dtype)


def _put(x: Tensor, rows: Tensor, piece: _Piece) -> None:
    """Write a piece's rows into x (B, N, H, D')."""
    if piece.blocks is None:
        b, h, start = piece.where[0]
        n, m = rows.shape[:2]
        x[b:b + n, start:start + piece.queries, h:h + m].transpose(1, 2).copy_(rows)
        return
    view = _view(x, piece.where, piece.queries)
    if view is not None:
        view.copy_(rows)
        return
    for (b, h, start), row in zip(piece.where, rows, strict=True):
        x[b, start:start + piece.queries, h] = row[0]


def _by_hand(piece: _Piece, grad: Tensor, out: Tensor, lse: Tensor, grad_lse: Tensor | None, scale: float,
             bias: Sequence[Bias], sums: list[list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass with the scores' gradient in hand, for a gradient of lse or of a bias: row by row,
    dS = P * (dO V^T - rowsum(dO * O) + dlse)."""
    shape_q, shape_k = piece.q.shape, piece.k.shape
    wide = lse.dtype
    d_q = torch.empty(shape_q, dtype=wide)
    d_k, d_v = torch.empty(shape_k, dtype=wide), torch.empty(shape_k, dtype=wide)
    for at, (b, h, start) in enumerate(piece.where):
        here = divmod(at, shape_q[1])
        q, k, v, g, o = (x[here].to(wide) for x in (piece.q, piece.k, piece.v, grad, out))
        weight = torch.addmm(lse[here][:, None], q, k.mT, beta=-1, alpha=scale)
        if piece.mask is not None:
            weight += piece.mask[min(here[0], piece.mask.shape[0] - 1), 0]
        weight.exp_()
        rest = torch.linalg.vecdot(g, o)
        if grad_lse is not None:
            rest = rest - grad_lse[here]
        torch.mm(weight.mT, g, out=d_v[here])
        d_scores = torch.addmm(rest[:, None], g, v.mT, beta=-1).mul_(weight)
        if any(sums):
            tokens = piece.tokens[min(at, len(piece.tokens) - 1)]
            cpu_bias.accumulate(bias, sums, d_scores, b, h, start, start + piece.queries, tokens)
        d_q[here] = torch.mm(d_scores, k).mul_(scale)
        d_k[here] = torch.mm(d_scores.mT, q).mul_(scale)
    return d_q, d_k, d_v
