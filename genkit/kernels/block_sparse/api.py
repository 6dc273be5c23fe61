"""The public entry of block-sparse attention: argument checks, token order, pooled keys, choice of backend."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.block_sparse import ops
from genkit.kernels.merge import merge
from genkit.kernels.plan.bias import Bias, LowRank, Quadratic, Table, flatten
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.tables import PooledKeys
from genkit.kernels.plan.visibility import rule_groups

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
    bias: Bias | Sequence[Bias] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the key blocks a plan lists: ``softmax(scale * q k^T + bias) v`` on the visible pairs.

    Args:
        q: (B, Nq, H, D). k, v: (B, Nk, Hk, D), Hk divides H (grouped queries). Any strides. Tokens in the order the
            plan was stated in; a plan with a ``TokenOrder`` permutes here and permutes the result back.
        plan: what to visit; static (broadcast over batch and heads) or per batch entry and head.
        scale: factor of the scores, default 1 / sqrt(D).
        backend: ``"auto"`` (the first exact backend that can run) or a name from :func:`backends`: it runs or raises.
        bias: one or several of ``LowRank``, ``Quadratic``, ``Table``, added to the scaled scores.

    Returns:
        out (B, Nq, H, D) like q, and lse (B, H, Nq), the natural log of the sum of exponentials, float32 (float64 for
        float64 inputs). Both are differentiable in q, k, v and the bias. A row switched off has out 0 and lse -inf.

    Cost: time and memory proportional to the visited blocks; no N x N tensor is made.

    Raises:
        UsageError: tensors, plan or bias that do not fit together. UnsupportedError: a named backend that cannot run.
    """
    terms = _terms(bias)
    _check(q, k, v, plan, terms)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *flatten(terms)[1]))
    order, key_order = plan.order, plan.key_order
    if order is not None:
        q = order.apply(q)
    if key_order is not None:
        k, v = key_order.apply(k), key_order.apply(v)
    if order is not None or key_order is not None:
        terms = tuple(term.reorder(order, key_order) for term in terms)
        plan = plan.in_order()
    out, lse = _run(q, k, v, plan, scale, backend, terms, needs_grad)
    if plan.pooled:
        parts = [_pooled(q, k, v, plan, part, scale, backend, terms, needs_grad) for part in plan.pooled]
        out, lse = merge([(out, lse), *parts])
    if order is not None:
        out, lse = order.restore(out), order.restore(lse, 2)
    return out, lse


def why_not(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    bias: Bias | Sequence[Bias] | None = None,
    needs_grad: bool | None = None,
) -> str | None:
    """Why a backend cannot run these inputs, or None when it can. The same text is in the error of a refused call.

    Args:
        needs_grad: whether a gradient will be asked for; None = as autograd stands now.
    """
    terms = _terms(bias)
    if needs_grad is None:
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *flatten(terms)[1]))
    return ops.load(backend).why_not(q, k, v, plan.in_order(), bias=terms, needs_grad=needs_grad)


def backends() -> tuple[str, ...]:
    """Names of the backends, in the order ``auto`` tries them."""
    return ops.backends()


def _run(q, k, v, plan, scale, backend, terms, needs_grad):
    kinds, bias = flatten(terms)
    tables, sizes = ops.tables(plan)
    return torch.ops.genkit.block_sparse(q, k, v, tables, sizes, bias, kinds, scale, backend, needs_grad)


def _pooled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    part: PooledKeys,
    scale: float,
    backend: str,
    terms: Sequence[LowRank],
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Attention over means of ``factor`` keys, each weighing as many keys as it stands for; the bias of a mean is the
    mean of its keys' biases, as its score is the mean of their scores."""
    k, v = (_means(x, plan, part) for x in (k, v))
    if part.count is None and not terms:
        out, lse = _run(q, k, v, part.plan, scale, backend, (), needs_grad)
        return out, lse + log(part.factor)
    wide = torch.promote_types(q.dtype, torch.float32)
    factors = [(term.f, _means(term.g, plan, part)) for term in terms]
    if part.count is not None:
        count = part.count if part.visible is not None else part.count.clamp(min=1)
        factors.append((q.new_ones(1, q.shape[1], 1, 1, dtype=wide), count.to(wide).log()[:, :, None, None]))
    bias = LowRank(*(_side_by_side(tables) for tables in zip(*factors, strict=True)))
    out, lse = _run(q, k, v, part.plan, scale, backend, (bias,), needs_grad)
    return out, lse if part.count is not None else lse + log(part.factor)


def _side_by_side(tables: Sequence[Tensor]) -> Tensor:
    """Factors (B|1, N, H|1, R) of several low-rank terms as one."""
    batch, heads = (max(table.shape[axis] for table in tables) for axis in (0, 2))
    return torch.cat([table.expand(batch, -1, heads, -1) for table in tables], -1)


def _means(x: Tensor, plan: BlockPlan, part: PooledKeys) -> Tensor:
    """(B, Mk * block_k / factor, Hk, D): means over groups of tokens, valid and visible tokens only."""
    factor = part.factor
    batch, length, heads, width = x.shape
    slots = plan.blocks_k * plan.block_k
    wide = torch.promote_types(x.dtype, torch.float32)
    if part.count is None and part.visible is None:  # no mean of real tokens holds anything else
        padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, slots - length)) if slots > length else x
        return padded.unflatten(1, (-1, factor)).mean(2, dtype=wide).to(x.dtype)
    padded = torch.nn.functional.pad(x.to(wide), (0, 0, 0, 0, 0, slots - length))
    real = part.visible
    if real is None:
        real = (torch.arange(plan.block_k, device=x.device) < plan.k_valid[:, None]).reshape(1, -1)
    real = real[:, :, None, None]
    groups = torch.where(real, padded, 0).view(max(batch, len(real)), -1, factor, heads, width)
    count = real.view(len(real), -1, factor, 1, 1).sum(2).clamp(min=1)
    return (groups.sum(2) / count).to(x.dtype)


def _terms(bias: Bias | Sequence[Bias] | None) -> tuple[Bias, ...]:
    terms = () if bias is None else (bias,) if isinstance(bias, (LowRank, Quadratic, Table)) else tuple(bias)
    for term in terms:
        if not isinstance(term, (LowRank, Quadratic, Table)):
            raise UsageError(f"bias: got {type(term).__name__}, allowed: LowRank, Quadratic, Table or a list of them")
    return terms


def _check(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, terms: Sequence[Bias]) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise UsageError(
            f"block-sparse attention takes q (B, Nq, H, D) and k, v (B, Nk, Hk, D) of one shape, got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    batch, n_q, heads, width = q.shape
    if (k.shape[0], k.shape[3]) != (batch, width):
        raise UsageError(f"q and k must agree in batch and head size, got {tuple(q.shape)} and {tuple(k.shape)}")
    if k.shape[2] == 0 or heads % k.shape[2]:
        raise UsageError(f"the {heads} query heads must be a multiple of the {k.shape[2]} key heads")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise UsageError(
            f"q, k and v must share one of the dtypes float16, bfloat16, float32, float64, got "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    if not q.device == k.device == v.device:
        raise UsageError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
    if not isinstance(plan, BlockPlan):
        raise UsageError(f"plan must be a BlockPlan, got {type(plan).__name__}")
    if plan.device != q.device:
        raise UsageError(f"the plan is on {plan.device}, the tensors are on {q.device}; use plan.to({str(q.device)!r})")
    if (plan.n_q, plan.n_k) != (n_q, k.shape[1]):
        raise UsageError(
            f"the plan is for {plan.n_q} queries and {plan.n_k} keys, but q has {n_q} tokens and k has "
            f"{k.shape[1]}; build a plan for this layout"
        )
    groups = rule_groups(plan)
    if plan.batch not in (1, batch) or plan.heads not in (1, heads) or groups not in (1, batch):
        raise UsageError(
            f"the plan has lists for {max(plan.batch, groups)} batch entries and {plan.heads} heads, but "
            f"q has {batch} and {heads}; allowed: 1 or the same number"
        )
    if plan.pooled and not all(isinstance(term, LowRank) for term in terms):
        raise UsageError(
            "a plan with pooled keys takes a LowRank bias only: the bias of a mean is the mean of its keys' biases, "
            "which a distance or a table of distances to the mean is not"
        )
    for term in terms:
        if text := term.misfit(batch, n_q, k.shape[1], heads):
            raise UsageError(f"bias: {text}")
        if any(table.device != q.device for table in term.tensors()):
            raise UsageError(f"bias: its tables must be on {q.device} like q")
