"""Linear cost: sums over chunks of tokens, states carried from group to group. Plain torch, autograd, any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genkit.kernels.linear_state.problem import Features
from genkit.kernels.linear_state.state import LinearState

PRIORITY = 10  # in the search of "auto", see genkit.kernels.discovery

# Tokens summed by one product: larger copies leave the cache.
SUM_CHUNK = 4096
# Tokens that attend to each other directly in mode "token".
TOKEN_CHUNK = 64
# The same for channel softmax, whose weights have one more axis.
CHANNEL_CHUNK = 16


def _key_value_weights(x: Features) -> tuple[Tensor, Tensor | None]:
    """Values carrying all numerator weights, and denominator keys carrying theirs."""
    v, den = x.v, x.k_den
    if x.value_weight is not None:
        v = v * x.value_weight[..., None]
    if x.key_weight is not None and not x.softmax:
        v = v * x.key_weight[..., None]
        den = den * x.key_weight[..., None]
    return v, den


def attention(x: Features, start: LinearState) -> tuple[Tensor, LinearState]:
    """Output and final state, see the api."""
    if x.softmax:
        return _channel_softmax(x, start)
    if x.mode == "token":
        return _token(x, start)
    v, den = _key_value_weights(x)
    outs = []
    state = start
    size = x.q.shape[1] if x.mode == "all" else x.group
    for number, span in enumerate(_spans(x.q.shape[1], size)):
        if x.decay is not None:
            factor = (x.decay if x.decay.dim() == 1 else x.decay[:, number]).exp()
            state = LinearState(state.kv * factor[..., None, None], state.z * factor[..., None], state.count)
        state = state.merge(_sum(x.k[:, span], v[:, span], den[:, span]))
        outs.append(_read(x, span, state))
    return torch.cat(outs, 1), state


def _spans(n: int, size: int) -> Iterator[slice]:
    for at in range(0, n, max(1, size)):
        yield slice(at, min(at + size, n))


def _sum(k: Tensor, v: Tensor, den: Tensor) -> LinearState:
    """The state of a run of tokens."""
    kv = z = 0
    for span in _spans(k.shape[1], SUM_CHUNK):
        kv = kv + torch.einsum("bnhd,bnhe->bhde", k[:, span], v[:, span])
        z = z + den[:, span].sum(1)
    return LinearState(kv, z, k.shape[1])


def _read(x: Features, span: slice, state: LinearState) -> Tensor:
    """What the queries of a span read from a state."""
    out = torch.einsum("bnhd,bhde->bnhe", x.q[:, span], state.kv)
    if x.q_den is None:
        return out
    den = torch.einsum("bnhd,bhd->bnh", x.q_den[:, span], state.z)
    return out / (den[..., None] + x.eps)


def _token(x: Features, state: LinearState) -> tuple[Tensor, LinearState]:
    """Token-causal: inside a chunk directly, everything before it through the state."""
    v, den = _key_value_weights(x)
    b, n, h, _ = x.q.shape
    each = x.q.new_zeros(1, 1, 1) if x.decay is None else x.decay[None, None] if x.decay.dim() == 1 else x.decay
    each = each.expand(b, n, h)
    outs = []
    for span in _spans(n, TOKEN_CHUNK):
        log = each[:, span].cumsum(1).transpose(1, 2)
        apart = log[..., :, None] - log[..., None, :]
        past = torch.ones(apart.shape[-2:], dtype=torch.bool, device=x.q.device).tril()
        weight = apart.masked_fill(~past, -torch.inf).exp()
        to_start = log.exp().transpose(1, 2)[..., None]
        scores = torch.einsum("bihd,bjhd->bhij", x.q[:, span], x.k[:, span]) * weight
        out = torch.einsum("bhij,bjhe->bihe", scores, v[:, span])
        out = out + torch.einsum("bihd,bhde->bihe", x.q[:, span] * to_start, state.kv)
        if x.q_den is not None:
            mass = (torch.einsum("bihd,bjhd->bhij", x.q_den[:, span], den[:, span]) * weight).sum(-1)
            mass = mass + torch.einsum("bihd,bhd->bhi", x.q_den[:, span] * to_start, state.z)
            out = out / (mass.transpose(1, 2)[..., None] + x.eps)
        outs.append(out)
        to_end = (log[..., -1:] - log).exp().transpose(1, 2)[..., None]
        whole = log[..., -1].exp()[..., None]
        state = LinearState(state.kv * whole[..., None], state.z * whole, state.count)
        state = state.merge(_sum(x.k[:, span] * to_end, v[:, span], den[:, span] * to_end))
    return torch.cat(outs, 1), state


def _channel_softmax(x: Features, state: LinearState) -> tuple[Tensor, LinearState]:
    v, _ = _key_value_weights(x)
    logits = x.k if x.key_weight is None else x.k + x.key_weight.log()[..., None]
    if x.mode == "token":
        return _channel_softmax_token(x.q, logits, v, state)
    outs = []
    size = x.q.shape[1] if x.mode == "all" else x.group
    for span in _spans(x.q.shape[1], size):
        state = state.merge(_softmax_state(logits[:, span], v[:, span]))
        outs.append(torch.einsum("bnhd,bhde->bnhe", x.q[:, span], state.kv))
    return torch.cat(outs, 1), state


def _softmax_state(logits: Tensor, v: Tensor) -> LinearState:
    kv = torch.einsum("bnhd,bnhe->bhde", logits.softmax(1), v)
    return LinearState(kv, logits.logsumexp(1), logits.shape[1], True)


def _channel_softmax_token(q: Tensor, logits: Tensor, v: Tensor, state: LinearState) -> tuple[Tensor, LinearState]:
    outs = []
    for span in _spans(q.shape[1], CHANNEL_CHUNK):
        piece = logits[:, span]
        # Running totals stay in logarithms: the ratio of two sums of exponentials may overflow either of them.
        total = torch.logaddexp(piece.logcumsumexp(1), state.z[:, None])
        past = torch.ones(piece.shape[1], piece.shape[1], dtype=torch.bool, device=q.device).tril()
        apart = piece[:, None] - total[:, :, None]
        weight = apart.masked_fill(~past[None, :, :, None, None], -torch.inf).exp()
        scores = (weight * q[:, span, None]).sum(-1)
        out = torch.einsum("bijh,bjhe->bihe", scores, v[:, span])
        kept = q[:, span] * (state.z[:, None] - total).exp()
        outs.append(out + torch.einsum("bihd,bhde->bihe", kept, state.kv))
        state = state.merge(_softmax_state(piece, v[:, span]))
    return torch.cat(outs, 1), state


def excluding(x: Features, plan) -> Tensor:
    """Output over the key blocks that the plan does not visit, one head at a time (a state per key block)."""
    v, den = _key_value_weights(x)
    order, key_order = plan.order, plan.key_order
    q, q_den = (t if t is None or order is None else order.apply(t) for t in (x.q, x.q_den))
    k, v, den = (t if key_order is None else key_order.apply(t) for t in (x.k, v, den))
    unseen = (plan.in_order().states() == 0).to(q.dtype)
    heads = []
    for head in range(q.shape[2]):
        where = unseen[:, head % unseen.shape[1]]
        keys, values, masses = (_blocks(t[:, :, head], plan.block_k, plan.blocks_k) for t in (k, v, den))
        queries = _blocks(q[:, :, head], plan.block_q, plan.blocks_q)
        kv = torch.einsum("bjnd,bjne->bjde", keys, values)
        # Summing what is kept, instead of subtracting what is not, leaves an exact 0 where nothing is kept.
        out = torch.einsum(
            "bind,bide->bine", queries, torch.einsum("bij,bjde->bide", where.expand(len(kv), -1, -1), kv)
        )
        if q_den is not None:
            z = torch.einsum("bij,bjd->bid", where.expand(len(kv), -1, -1), masses.sum(2))
            reader = _blocks(q_den[:, :, head], plan.block_q, plan.blocks_q)
            out = out / (torch.einsum("bind,bid->bin", reader, z)[..., None] + x.eps)
        heads.append(out.flatten(1, 2)[:, : q.shape[1]])
    out = torch.stack(heads, 2)
    return out if order is None else order.restore(out)


def _blocks(x: Tensor, block: int, count: int) -> Tensor:
    """(B, N, D) to (B, count, block, D), padded with zeros."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, count * block - x.shape[1]))
    return padded.unflatten(1, (count, block))
