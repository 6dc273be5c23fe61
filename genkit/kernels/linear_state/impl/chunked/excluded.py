"""Linear attention over the key blocks that a plan does not visit, some heads at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genkit.kernels.linear_state.impl.chunked.steps import weighted
from genkit.kernels.linear_state.problem import TENSORS, Features

# Numbers that the states of all key and query blocks may take at once; more heads wait for their turn.
_MOST = 1 << 24


def excluding(x: Features, plan: Any) -> Tensor:
    """Output over the key blocks that the plan does not visit, see the api."""
    unseen = plan.in_order().states() == 0
    if torch.compiler.is_compiling():
        return _forward(x, plan, unseen)
    return _Excluded.apply(x, plan, unseen, *x.tensors())


def _turns(x: Features, plan: Any) -> list[slice]:
    """Heads that are computed together."""
    heads, width = x.q.shape[2], x.q.shape[-1] * x.v.shape[-1]
    each = x.q.shape[0] * (plan.blocks_q + plan.blocks_k) * width
    many = max(1, _MOST // max(1, each))
    return [slice(at, min(at + many, heads)) for at in range(0, heads, many)]


def _part(name: str, x: Tensor | None, heads: slice) -> Tensor | None:
    """Some heads of an input; a decay has none to give here."""
    return None if x is None or name == "decay" else x[:, :, heads]


def _forward(x: Features, plan: Any, unseen: Tensor) -> Tensor:
    outs = []
    for heads in _turns(x, plan):
        part = {name: _part(name, getattr(x, name), heads) for name in TENSORS}
        outs.append(_heads({n: t if t is None else t.to(x.wide) for n, t in part.items()}, plan, unseen, heads, x.eps))
    return torch.cat(outs, 2)


def _heads(part: dict[str, Any], plan: Any, unseen: Tensor, heads: slice, eps: float) -> Tensor:
    v, den = weighted(part, False)
    order, key_order = plan.order, plan.key_order
    q, q_den = (t if t is None or order is None else order.apply(t) for t in (part["q"], part["q_den"]))
    k, v, den = (t if t is None or key_order is None else key_order.apply(t) for t in (part["k"], v, den))
    which = torch.arange(heads.start, heads.stop, device=unseen.device) % unseen.shape[1]
    where = unseen[:, which].to(q.dtype).expand(len(q), -1, -1, -1)
    keys, values = (_blocks(t, plan.block_k, plan.blocks_k) for t in (k, v))
    # Summing what is kept, instead of subtracting what is not, leaves an exact 0 where nothing is kept.
    kv = torch.einsum("bhij,bjhde->bihde", where, torch.einsum("bjnhd,bjnhe->bjhde", keys, values))
    out = torch.einsum("binhd,bihde->binhe", _blocks(q, plan.block_q, plan.blocks_q), kv)
    if q_den is not None:
        z = torch.einsum("bhij,bjhd->bihd", where, _blocks(den, plan.block_k, plan.blocks_k).sum(2))
        total = torch.einsum("binhd,bihd->binh", _blocks(q_den, plan.block_q, plan.blocks_q), z)
        out = out / (total[..., None] + eps)
    out = out.flatten(1, 2)[:, : q.shape[1]]
    return out if order is None else order.restore(out)


def _blocks(x: Tensor, block: int, count: int) -> Tensor:
    """(B, N, H, D) to (B, count, block, H, D), padded with zeros."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, count * block - x.shape[1]))
    return padded.unflatten(1, (count, block))


class _Excluded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Features, plan: Any, unseen: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.form, ctx.owners, ctx.plan = x.form, x.owners, plan
        ctx.save_for_backward(unseen, *tensors)
        return _forward(x, plan, unseen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        unseen, *inputs = ctx.saved_tensors
        x = Features.again(inputs, ctx.owners, *ctx.form)
        wanted = [name for name, needed in zip(TENSORS, ctx.needs_input_grad[3:], strict=True) if needed]
        grads = {name: torch.zeros_like(getattr(x, name)) for name in wanted}
        for heads in _turns(x, ctx.plan):
            with torch.enable_grad():
                part = {
                    name: t if t is None else t.detach().to(x.wide).requires_grad_(ctx.owners[name] in grads)
                    for name, t in ((name, _part(name, getattr(x, name), heads)) for name in TENSORS)
                }
                out = _heads(part, ctx.plan, unseen, heads, x.eps)
            leaves = {name: t for name, t in part.items() if t is not None and t.requires_grad}
            if not leaves:
                continue
            found = dict(
                zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out[:, :, heads]), strict=True)
            )
            for name in set(ctx.owners[name] for name in leaves):
                grads[name][:, :, heads] = sum(grad for each, grad in found.items() if ctx.owners[each] == name)
        return None, None, None, *(grads.get(name) for name in TENSORS)
