"""CPU backend: per key block one dense attention of the queries that chose it, merged into the output on the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genkit.kernels.inputs import unit_rows
from genkit.kernels.token_select.pairs import Pairs

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Queries of one dense call: more do not run faster, and the gathered copies must stay in cache.
QUERY_CHUNK = 4096


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    if q.device.type != "cpu":
        return f"the inputs are on {q.device}, the cpu backend needs them on the CPU"
    return None


def _visits(pairs: Pairs, selected: Tensor, starts: list[int], group: int) -> Iterator[tuple]:
    """(batch, head, key head, key slice, query rows) of every chunk of queries."""
    b, h, _, c = selected.shape
    edges = pairs.block_start.tolist()
    for number in range(b * h * c):
        lo, hi = edges[number], edges[number + 1]
        head, block = number // c % h, number % c
        keys = slice(starts[block], starts[block + 1])
        if keys.start == keys.stop:
            continue
        for at in range(lo, hi, QUERY_CHUNK):
            rows = pairs.query[at : min(at + QUERY_CHUNK, hi)]
            yield number // (h * c), head, head // group, keys, rows


def forward(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, starts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Out in the dtype of q and lse in float32; accumulation in float32 (float64 for float64 input)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    b, n, h, d = q.shape
    q, k, v = (unit_rows(x) for x in (q, k, v))
    acc = torch.zeros(b, h, n, d, dtype=wide)
    lse = torch.full((b, h, n), -torch.inf, dtype=wide)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    for batch, head, kv_head, span, rows in _visits(Pairs.of(selected), selected, starts, h // k.shape[2]):
        tile = queries[batch, head].index_select(0, rows)[None, None]
        o, s = _forward(
            tile, keys[batch, kv_head, span][None, None], values[batch, kv_head, span][None, None], scale=scale
        )
        o, s = o[0, 0].to(wide), s[0, 0].to(wide)
        old = lse[batch, head].index_select(0, rows)
        new = torch.logaddexp(old, s)
        kept = acc[batch, head].index_select(0, rows) * (old - new).exp()[:, None]
        acc[batch, head].index_copy_(0, rows.long(), kept + o * (s - new).exp()[:, None])
        lse[batch, head].index_copy_(0, rows.long(), new)
    # The dense kernel takes a query of NaN for a masked row and answers 0. NaN must stay visible.
    poison = queries.isnan().any(-1)
    if poison.any():
        acc.masked_fill_(poison[..., None], torch.nan)
        lse.masked_fill_(poison, torch.nan)
    return acc.transpose(1, 2).to(q.dtype).contiguous(), lse


def backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, selected: Tensor,
    starts: list[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v: every visit is the backward of a dense call fed with the merged out and lse."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, v = (unit_rows(x) for x in (q, k, v))
    dq, dk, dv = (torch.zeros(x.transpose(1, 2).shape, dtype=wide) for x in (q, k, v))
    with_lse = bool((d_lse != 0).any())
    queries, keys, values, outs, grads = (x.transpose(1, 2) for x in (q, k, v, out, d_out))
    if with_lse:
        # The kernel subtracts rowsum(dO * O). One more channel with dO = 1 and O = -dL makes that the row term we need.
        grads = torch.cat([grads, torch.ones_like(grads[..., :1])], -1)
        outs = torch.cat([outs, -d_lse[..., None].to(outs.dtype)], -1)
        queries, keys, values = (torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], -1) for x in (queries, keys, values))
    d = q.shape[-1]
    for batch, head, kv_head, span, rows in _visits(Pairs.of(selected), selected, starts, q.shape[2] // k.shape[2]):
        tile, o, g = (x[batch, head].index_select(0, rows)[None, None] for x in (queries, outs, grads))
        own_lse = lse[batch, head].index_select(0, rows)[None, None]
        key, value = keys[batch, kv_head, span][None, None], values[batch, kv_head, span][None, None]
        gq, gk, gv = _backward(g, tile, key, value, o, own_lse, 0.0, False, scale=scale)
        dq[batch, head].index_add_(0, rows, gq[0, 0, :, :d].to(wide))
        dk[batch, kv_head, span] += gk[0, 0, :, :d]
        dv[batch, kv_head, span] += gv[0, 0, :, :d]
    return tuple(g.transpose(1, 2).to(q.dtype).contiguous() for g in (dq, dk, dv))
