"""Torch's FlexAttention as a backend: compiled on a GPU; on the CPU uncompiled, forward only, and dense inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from genkit.kernels.block_sparse.recompute import gradients
from genkit.kernels.plan.bias import Bias, LowRank, Quadratic
from genkit.kernels.plan.block_plan import BlockPlan

PRIORITY = 30  # in the search of "auto", see genkit.kernels.discovery

_CPU_SCORES = 1 << 28  # score entries the uncompiled version may hold


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """Why these inputs cannot run here, or None."""
    if q.device.type not in ("cpu", "cuda"):
        return f"FlexAttention runs on cpu and cuda, the tensors are on {q.device}"
    if q.device.type == "cpu":
        if needs_grad:
            return "FlexAttention has no backward pass on the CPU; use backend='cpu' or call under torch.no_grad()"
        scores = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
        if scores > _CPU_SCORES:
            return (
                f"uncompiled FlexAttention would hold {scores:,} scores at once, allowed here: {_CPU_SCORES:,}; "
                "use backend='cpu'"
            )
    elif q.dtype == torch.float64:
        return "compiled FlexAttention takes no float64"
    elif any(size % 16 or size < 16 for size in (plan.block_q, plan.block_k)):
        return f"compiled FlexAttention wants blocks in multiples of 16, the plan has {plan.block_q} x {plan.block_k}"
    return None


@cache
def _compiled() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    # One whole graph or an error: after too many recompilations the compiler would silently run the N x N version.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    scale: float,
    bias: Sequence[Bias] = (),
    options: Mapping[str, object] | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) by FlexAttention, differentiable on a GPU. ``options``: FlexAttention's ``kernel_options``."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    run = flex_attention if q.device.type == "cpu" else _compiled()
    out, aux = run(
        *(x.transpose(1, 2) for x in (q, k, v)),
        score_mod=_score_mod(bias) if bias else None,
        block_mask=plan.to_block_mask(),
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
        return_aux=AuxRequest(lse=True),
        kernel_options=None if options is None else dict(options),
    )
    out, lse = out.transpose(1, 2), aux.lse.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    slot = torch.arange(plan.block_q, device=q.device)
    padding = (slot >= plan.q_valid[:, None]).flatten()[: q.shape[1]]
    empty = padding | plan.off.repeat_interleave(plan.block_q, -1)[..., : q.shape[1]]
    return out.masked_fill(empty.transpose(1, 2)[..., None], 0), lse.masked_fill(empty, -torch.inf)


def _score_mod(terms: Sequence[Bias]) -> Callable[..., Tensor]:
    def mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        for term in terms:
            score = score + _value(term, b, h, i, j)
        return score

    return mod


def _value(term: Bias, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    if isinstance(term, LowRank):
        f = term.f[b % term.f.shape[0], i, h % term.f.shape[2]]
        g = term.g[b % term.g.shape[0], j, h % term.g.shape[2]]
        return (f.float() * g.float()).sum(-1) if f.dtype != torch.float64 else (f * g).sum(-1)
    if isinstance(term, Quadratic):
        head = h % term.weight.shape[0]
        total = 0
        for axis in range(term.q_pos.shape[1]):
            apart = ((term.q_pos[i, axis] - term.k_pos[j, axis]).abs() - term.hinge[axis]).clamp(min=0)
            total = total + term.weight[head, axis] * apart * apart
        return -term.q_gain[i] * term.k_gain[j] * total
    total = 0
    for axis, values in enumerate(term.values):
        place = term.q_pos[i, axis] - term.k_pos[j, axis] + values.shape[1] // 2
        inside = (place >= 0) & (place < values.shape[1])
        found = values[h % values.shape[0], place.clamp(0, values.shape[1] - 1)]
        total = total + torch.where(inside, found, torch.zeros_like(found))
    return total


@dataclass(frozen=True)
class Kernels:
    """The two passes of the backend with FlexAttention's ``kernel_options``."""

    options: Mapping[str, object] | None = None

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias]
    ) -> tuple[Tensor, Tensor]:
        """:func:`attention` with these options."""
        return attention(q, k, v, plan, scale, bias, self.options)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias]
    ) -> tuple[Tensor, Tensor]:
        """:func:`attention` without a graph."""
        with torch.no_grad():
            out, lse = self.attention(q, k, v, plan, scale, bias)
        return out.contiguous(), lse.contiguous()

    def backward(
        self, grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        plan: BlockPlan, scale: float, bias: Sequence[Bias],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
        """Gradients of q, k, v and of the trainable bias tables, by FlexAttention's own backward through a second
        run."""
        if grad_lse is not None:
            grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0)
        run = lambda q, k, v, bias: self.attention(q, k, v, plan, scale, bias)  # noqa: E731
        return gradients(run, grad_out, grad_lse, q, k, v, bias)


forward, backward = Kernels().forward, Kernels().backward
