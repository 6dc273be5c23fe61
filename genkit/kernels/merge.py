"""Log-sum-exp merge: attention over a union of key sets from the attention over each set.

Each part is an ``(out, lse)`` pair computed over its own keys. Weighting the outputs by ``exp(lse_i - lse)`` with
``lse = log sum exp lse_i`` gives exactly the attention over all keys together, provided the key sets are disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.errors import UsageError

Part = tuple[Tensor, Tensor]


def merge(parts: Sequence[Part]) -> Part:
    """Merge attention parts over disjoint key sets into the attention over their union.

    Args:
        parts: at least one ``(out, lse)``. ``out`` is (B, N, H, D), ``lse`` (B, H, N), natural logarithm. A row that
            saw no key in a part has lse ``-inf`` there and its output is ignored, whatever it holds (NaN included).

    Returns:
        ``(out, lse)`` in the dtype of the first part's ``out`` and in float32 (float64 for float64 outputs). A row with
        lse ``-inf`` in every part has output 0 and lse ``-inf``.

    Differentiable in every out and lse. Memory: the outputs of all parts are kept for the backward pass.

    Raises:
        UsageError: no part, or shapes, dtypes or devices that differ.
    """
    parts = list(parts)
    _check(parts)
    outs, lses = zip(*parts, strict=True)
    return _Merge.apply(*outs, *lses)


def _check(parts: list[Part]) -> None:
    if not parts:
        raise UsageError("merge needs at least one (out, lse) part, got none")
    out, lse = parts[0]
    if out.dim() != 4:
        raise UsageError(f"merge: out must be (B, N, H, D), got shape {tuple(out.shape)}")
    wanted = (out.shape[0], out.shape[2], out.shape[1])
    for number, (o, s) in enumerate(parts):
        if o.shape != out.shape or tuple(s.shape) != wanted:
            raise UsageError(
                f"merge: part {number} has out {tuple(o.shape)} and lse {tuple(s.shape)}, "
                f"but part 0 asks for out {tuple(out.shape)} and lse {wanted}"
            )
        if o.dtype != out.dtype or o.device != out.device or s.device != out.device:
            raise UsageError(
                f"merge: part {number} is {o.dtype} on {o.device} (lse on {s.device}), "
                f"part 0 is {out.dtype} on {out.device}"
            )


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def merged_lse(lses: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Total log-sum-exp and the weight ``exp(lse_i - total)`` of every part.

    Rows that are ``-inf`` everywhere get total ``-inf`` and weights 0, without a NaN on the way.
    """
    top = lses[0]
    for lse in lses[1:]:
        top = torch.maximum(top, lse)
    finite_top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    masses = [torch.exp(lse - finite_top) for lse in lses]
    mass = masses[0].clone()
    for other in masses[1:]:
        mass += other
    total = torch.log(mass) + finite_top
    divisor = torch.where(mass == 0, torch.ones_like(mass), mass)
    return total, [m / divisor for m in masses]


def _per_row(weight: Tensor) -> Tensor:
    """(B, H, N) to (B, N, H, 1), the shape that multiplies an output."""
    return weight.transpose(1, 2).unsqueeze(-1)


def _weighted(out: Tensor, share: Tensor) -> Tensor:
    """share * out, 0 where the share is, whatever the output holds there."""
    return (out * share).masked_fill_(share == 0, 0)


class _Merge(torch.autograd.Function):
    """Backward: with w_i the weights, d out_i = w_i dO and d lse_i = w_i (d lse + <dO, out_i - out>)."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Part:
        count = len(tensors) // 2
        outs, lses = tensors[:count], tensors[count:]
        wide = _statistics_dtype(outs[0].dtype)
        total, weights = merged_lse([lse.to(wide) for lse in lses])
        terms = (_weighted(o, _per_row(w)) for o, w in zip(outs, weights, strict=True))
        out = next(terms)
        for term in terms:
            out += term
        ctx.save_for_backward(*outs, *weights, out)
        ctx.lse_dtypes = [lse.dtype for lse in lses]
        ctx.set_materialize_grads(False)
        return out.to(outs[0].dtype), total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out: Tensor | None, d_lse: Tensor | None):
        saved = ctx.saved_tensors
        count = len(saved) // 2
        outs, weights, out = saved[:count], saved[count:-1], saved[-1]
        d_outs: list[Tensor | None] = []
        d_lses: list[Tensor | None] = []
        grad = None if d_out is None else d_out.to(out.dtype)
        for i, (o, w) in enumerate(zip(outs, weights, strict=True)):
            row = torch.zeros_like(w) if d_lse is None else d_lse.to(w.dtype)
            if grad is not None:
                row = row + torch.linalg.vecdot(grad, o.to(out.dtype) - out).transpose(1, 2)
                d_outs.append((_per_row(w) * grad).to(o.dtype) if ctx.needs_input_grad[i] else None)
            else:
                d_outs.append(None)
            wanted = ctx.needs_input_grad[count + i]
            d_lses.append(torch.where(w == 0, torch.zeros_like(row), w * row).to(ctx.lse_dtypes[i]) if wanted else None)
        return (*d_outs, *d_lses)
