"""CPU backend: native kernels where they run, else per key block one dense attention of the queries that chose it, then
one weighted sum per query.

The queries of all pairs are gathered at once, so that a visit is a single call on neighbouring rows; what the visits
found is merged by their log-sum-exp in one pass (an embedding bag: gather, weigh and add), not visit by visit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from genkit.kernels.inputs import unit_rows
from genkit.kernels.native.attention import passes as block_sparse
from genkit.kernels.token_select.impl.cpu import visits as native
from genkit.kernels.token_select.pairs import Pairs
from genkit.kernels.token_select.tables import as_mask

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

#: Bytes of one gathered copy; longer inputs are worked through in ranges of queries, a head at a time if need be.
COPY_BYTES = 16 << 20


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    if q.device.type != "cpu":
        return f"the inputs are on {q.device}, the cpu backend needs them on the CPU"
    return None


@dataclass(frozen=True)
class _Part:
    """A range of queries of some heads of one batch item, and its chosen pairs.

    Attributes:
        batch, heads, span: where in (B, H, N).
        pairs: of the selection (1, heads, span, C).
    """

    batch: int
    heads: slice
    span: slice
    pairs: Pairs

    def gather(self, x: Tensor) -> Tensor:
        """The rows of (B, H, N, D) or (B, H, N) that the pairs name: (P, D) or (P,)."""
        return x[self.batch, self.heads, self.span].flatten(0, 1).index_select(0, self.pairs.row)

    def add_up(self, found: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over the pairs of every query: (P, D) and weights (P,) to (heads, span, D)."""
        order, start = self.pairs.row_pair, self.pairs.row_start
        shares = None if weights is None else weights.index_select(0, order)
        total = embedding_bag(order, found, start, mode="sum", per_sample_weights=shares, include_last_offset=True)
        return total.unflatten(0, (self.heads.stop - self.heads.start, -1))

    def visits(self, starts: list[int], group: int) -> Iterator[tuple[int, slice, slice]]:
        """(key head, key slice, slice of the pairs) of every block that a query chose."""
        edges, blocks = self.pairs.block_start.tolist(), len(starts) - 1
        for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            if high > low:
                head, block = self.heads.start + number // blocks, number % blocks
                yield head // group, slice(starts[block], starts[block + 1]), slice(low, high)


def _parts(selected: Tensor, width: int) -> Iterator[_Part]:
    """The whole selection (B, H, N, C) in parts whose gathered rows of ``width`` floats take about the budget."""
    b, h, n = selected.shape[:3]
    kept = selected.sum(-1)
    for batch in range(b):
        # The heaviest head decides; queries of a head are taken to choose alike.
        heaviest = max(1, int(kept[batch].sum(-1).max()))
        rows = COPY_BYTES // (4 * width)
        queries = max(1, min(n, n * rows // heaviest))
        heads = max(1, min(h, rows // heaviest))
        for head in range(0, h, heads):
            for at in range(0, n, queries):
                here = slice(head, min(head + heads, h)), slice(at, min(at + queries, n))
                yield _Part(batch, *here, Pairs.of(selected[batch, *here][None]))


def forward(
    q: Tensor, k: Tensor, v: Tensor, chosen: list[Tensor], most: int, starts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Out in the dtype of q and lse in float32; accumulation in float32 (float64 for float64 input)."""
    selected = as_mask(chosen, len(starts) - 1)
    if not selected.numel():  # no queries
        return torch.zeros_like(q), torch.zeros(selected.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    if block_sparse.inputs_why_not(q, scale) is None:
        return block_sparse.forward(q, k, v, native.lists(q, k, v, selected, starts), scale)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    b, n, h, d = q.shape
    queries, keys, values = (unit_rows(x).transpose(1, 2) for x in (q, k, v))
    out = torch.zeros(b, h, n, d, dtype=wide)
    lse = torch.full((b, h, n), -torch.inf, dtype=wide)
    for part in _parts(selected, d):
        tile = part.gather(queries)
        found, mass = torch.empty(tile.shape, dtype=wide), torch.empty(len(tile), dtype=wide)
        for head, block, pairs in part.visits(starts, h // k.shape[2]):
            here = part.batch, head, block
            o, s = _forward(tile[pairs][None, None], keys[here][None, None], values[here][None, None], scale=scale)
            found[pairs], mass[pairs] = o[0, 0], s[0, 0]
        here = part.batch, part.heads, part.span
        whole, share = _merged(mass, part.pairs.row, lse[here].numel())
        lse[here] = whole.view_as(lse[here])
        out[here] = part.add_up(found, share)
    poison = _poisoned(queries, keys, selected, starts)
    if poison.any():
        out.masked_fill_(poison[..., None], torch.nan)
        lse.masked_fill_(poison, torch.nan)
    return out.transpose(1, 2).to(q.dtype).contiguous(), lse


def _poisoned(queries: Tensor, keys: Tensor, selected: Tensor, starts: list[int]) -> Tensor:
    """bool (B, H, N): rows with a NaN in the query or in a chosen key. The dense kernel takes scores that are all NaN
    for a masked row and answers 0; NaN must stay visible."""
    rows, bad = queries.isnan().any(-1), keys.isnan().any(-1)
    if bad.any():
        blocks = torch.stack([bad[..., low:high].any(-1) for low, high in zip(starts, starts[1:], strict=False)], -1)
        blocks = blocks.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        rows = rows | (selected & blocks[:, :, None]).any(-1)
    return rows


def _merged(mass: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp (rows,) of the pairs of every row, -inf without any, and each pair's share (P,) of it."""
    highest = mass.new_full((rows,), -torch.inf).scatter_reduce(0, row, mass, "amax")
    weight = (mass - highest[row]).exp()
    total = mass.new_zeros(rows).scatter_add(0, row, weight)
    return highest + total.log(), weight / total[row]


def backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: list[Tensor],
    most: int, starts: list[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v: every visit is the backward of a dense call fed with the merged out and lse."""
    selected = as_mask(chosen, len(starts) - 1)
    if not selected.numel():
        return tuple(torch.zeros_like(x) for x in (q, k, v))
    if block_sparse.inputs_why_not(q, scale) is None:
        delta = block_sparse.row_term(d_out, d_lse, out, lse)
        lists = native.lists(q, k, v, selected, starts)
        return block_sparse.backward(d_out, delta, q, k, v, lse, lists, scale)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = (torch.zeros(x.transpose(1, 2).shape, dtype=wide) for x in (q, k, v))
    queries, keys, values, outs, grads = (unit_rows(x).transpose(1, 2) for x in (q, k, v, out, d_out))
    if bool((d_lse != 0).any()):
        # The kernel subtracts rowsum(dO * O). One more channel with dO = 1 and O = -dL makes that the row term we need.
        grads = torch.cat([grads, torch.ones_like(grads[..., :1])], -1)
        outs = torch.cat([outs, -d_lse[..., None].to(outs.dtype)], -1)
        queries, keys, values = (torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], -1) for x in (queries, keys, values))
    d = q.shape[-1]
    for part in _parts(selected, queries.shape[-1]):
        tile, own, sent, mass = (part.gather(x) for x in (queries, outs, grads, lse))
        found = torch.empty(len(tile), d, dtype=wide)
        for head, block, pairs in part.visits(starts, q.shape[2] // k.shape[2]):
            here = part.batch, head, block
            g, x, o, s = (y[pairs][None, None] for y in (sent, tile, own, mass))
            key, value = keys[here][None, None], values[here][None, None]
            gq, gk, gv = _backward(g, x, key, value, o, s, 0.0, False, scale=scale)
            found[pairs] = gq[0, 0, :, :d]
            dk[here] += gk[0, 0, :, :d]
            dv[here] += gv[0, 0, :, :d]
        dq[part.batch, part.heads, part.span] = part.add_up(found)
    return tuple(g.transpose(1, 2).to(q.dtype).contiguous() for g in (dq, dk, dv))
