"""The specification: the explicit N x N form of linear attention, weights and all."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.kernels.linear_state.problem import Features
from genkit.kernels.linear_state.state import LinearState

PRIORITY = 90  # in the search of "auto", see genkit.kernels.discovery


def _step_of(x: Features) -> Tensor:
    """The time step of every token: its frame, chunk or index."""
    tokens = torch.arange(x.k.shape[1], device=x.q.device)
    return tokens // (x.group or 1) if x.mode != "all" else torch.zeros_like(tokens)


def _log_past(x: Features) -> Tensor:
    """(B|1, H|1, T): log of the decay from before step 0 to each step, both ends included."""
    if x.decay is None:
        return x.q.new_zeros(1, 1, x.steps)
    each = x.decay.expand(x.q.shape[0], x.steps, -1) if x.decay.dim() == 1 else x.decay
    return each.cumsum(1).transpose(1, 2)


def _weighted(x: Features) -> tuple[Tensor, Tensor]:
    """Key weights of numerator and denominator, (B, H, 1, N) or the number 1."""
    one = x.k.new_ones(1, 1, 1, 1)
    key = one if x.key_weight is None else x.key_weight.transpose(1, 2)[:, :, None]
    value = one if x.value_weight is None else x.value_weight.transpose(1, 2)[:, :, None]
    return key * value, key


def attention(x: Features, start: LinearState) -> tuple[Tensor, LinearState]:
    """Output and final state, see the api."""
    x = x.widened()
    return _softmax_over_channels(x, start) if x.softmax else _sums(x, start)


def _sums(x: Features, start: LinearState) -> tuple[Tensor, LinearState]:
    step, past = _step_of(x), _log_past(x)
    log = past[..., step]
    own = log if x.mode != "all" else x.q.new_zeros(1, 1, x.q.shape[1])
    apart = own[..., :, None] - log[..., None, :]
    seen = _seen(x, step)
    decay = apart.masked_fill(~seen, -torch.inf).exp()
    numerator_weight, denominator_weight = _weighted(x)
    scores = torch.einsum("bihd,bjhd->bhij", x.q, x.k) * decay * numerator_weight
    out = torch.einsum("bhij,bjhe->bihe", scores, x.v)
    out = out + torch.einsum("bihd,bhde->bihe", x.q, start.kv) * own.exp().transpose(1, 2)[..., None]
    if x.q_den is not None:
        den = (torch.einsum("bihd,bjhd->bhij", x.q_den, x.k_den) * decay * denominator_weight).sum(-1)
        den = den + torch.einsum("bihd,bhd->bhi", x.q_den, start.z) * own.exp()
        out = out / (den.transpose(1, 2)[..., None] + x.eps)
    left = (past[..., -1:] - log).exp()[..., None, :]
    end = past[..., -1].exp()
    kv = (
        torch.einsum("bjhd,bhj,bjhe->bhde", x.k, _row(left * numerator_weight, x), x.v)
        + start.kv * end[..., None, None]
    )
    z = torch.einsum("bjhd,bhj->bhd", x.k_den, _row(left * denominator_weight, x)) + start.z * end[..., None]
    return out, LinearState(kv, z, start.count + x.k.shape[1])


def _seen(x: Features, step: Tensor) -> Tensor:
    """(Nq, N): who sees whom."""
    if x.mode == "all":
        return torch.ones(x.q.shape[1], len(step), dtype=torch.bool, device=step.device)
    return step[None, :] <= step[:, None]


def _row(weight: Tensor, x: Features) -> Tensor:
    b, n, h, _ = x.k.shape
    return weight[:, :, 0].expand(b, h, n)


def _softmax_over_channels(x: Features, start: LinearState) -> tuple[Tensor, LinearState]:
    step = _step_of(x)
    seen = _seen(x, step)[None, None, :, :, None]
    numerator_weight, denominator_weight = (w[..., None] for w in _weighted(x))
    logits = x.k.transpose(1, 2)[:, :, None] + denominator_weight.log()
    logits = logits.expand(-1, -1, x.q.shape[1], -1, -1).masked_fill(~seen, -torch.inf)
    total = torch.logaddexp(logits.logsumexp(3), start.z[:, :, None])
    value = numerator_weight / denominator_weight.masked_fill(denominator_weight == 0, 1)
    end = total[:, :, -1]
    total = total.masked_fill(total == -torch.inf, 0)  # nothing is visible: every weight is 0
    scores = ((logits - total[:, :, :, None]).exp() * value * x.q.transpose(1, 2)[:, :, :, None]).sum(-1)
    out = torch.einsum("bhij,bjhe->bihe", scores, x.v)
    kept = x.q.transpose(1, 2) * (start.z[:, :, None] - total).exp()
    out = out + torch.einsum("bhid,bhde->bihe", kept, start.kv)
    last = total[:, :, -1]
    weights = (logits[:, :, -1] - last[:, :, None]).exp() * value[:, :, 0]
    kv = torch.einsum("bhjd,bjhe->bhde", weights, x.v) + (start.z - last).exp()[..., None] * start.kv
    return out, LinearState(kv, end, start.count + x.k.shape[1], True)


def excluding(x: Features, plan) -> Tensor:
    """Output over the key blocks that the plan does not visit."""
    x = x.widened()
    order, key_order = plan.order, plan.key_order
    owner = [_block_of(order, x.q.shape[1], plan.block_q), _block_of(key_order, x.k.shape[1], plan.block_k)]
    unseen = (plan.in_order().states() == 0)[:, :, owner[0].to(x.q.device)][:, :, :, owner[1].to(x.q.device)]
    numerator_weight, denominator_weight = _weighted(x)
    scores = torch.einsum("bihd,bjhd->bhij", x.q, x.k) * unseen * numerator_weight
    out = torch.einsum("bhij,bjhe->bihe", scores, x.v)
    if x.q_den is None:
        return out
    den = (torch.einsum("bihd,bjhd->bhij", x.q_den, x.k_den) * unseen * denominator_weight).sum(-1)
    return out / (den.transpose(1, 2)[..., None] + x.eps)


def _block_of(order, n: int, block: int) -> Tensor:
    """The block of every token in original order."""
    return (torch.arange(n) if order is None else order.inverse) // block
