"""Brute-force attention with a full N x N mask in float64, written from the definitions and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Case:
    """One generated problem: inputs, the mask by definition, and how to make the plan."""

    seed: int
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor  # (B|1, H|1, Nq, Nk) bool
    scale: float
    rule: object = None
    keep: Tensor | None = None
    off: Tensor | None = None
    sizes: dict = field(default_factory=dict)
    use_lse: bool = False


def visible(rule) -> Tensor:
    """(B|1, 1, Nq, Nk) bool of a rule in original token order, token by token."""
    code = rule.visible.long()[rule.q_group.long()[:, None], rule.k_group.long()[:, None, :]]
    inside = torch.ones(rule.n_q, rule.n_k, dtype=torch.bool)
    for axis in range(rule.q_lo.shape[1]):
        position = rule.k_pos[None, :, axis]
        inside &= (position >= rule.q_lo[:, None, axis]) & (position < rule.q_hi[:, None, axis])
    if rule.radius2 is not None:
        distance = (rule.q_pos[:, None].double() - rule.k_pos[None].double()).pow(2).sum(-1)
        inside &= distance < rule.radius2
    return ((code == 1) | ((code == 2) & inside))[:, None]


def spread(blocks: Tensor, q_slot: Tensor, k_slot: Tensor, block_q: int, block_k: int) -> Tensor:
    """(..., Mq, Mk) bool of blocks to (..., Nq, Nk) of tokens, given the slot of every token."""
    return blocks[..., q_slot // block_q, :][..., k_slot // block_k]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """(out (B, Nq, H, D), lse (B, H, Nq)) in ``dtype`` with every intermediate in ``dtype``; differentiable."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.to(dtype)
    mask = mask.expand(scores.shape)
    some = mask.any(-1, keepdim=True)
    scores = torch.where(mask | ~some, scores, -torch.inf)
    out = torch.where(some, torch.softmax(scores, -1), 0) @ v
    lse = torch.where(some[..., 0], torch.logsumexp(scores, -1), -torch.inf)
    return out.transpose(1, 2), lse


def gradients(case: Case, dtype: torch.dtype, d_out: Tensor, d_lse: Tensor | None) -> list[Tensor]:
    """[out, lse, dq, dk, dv] of the brute force in ``dtype``."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (case.q, case.k, case.v))
    out, lse = attend(q, k, v, case.mask, case.scale, dtype=dtype)
    loss = (out * d_out.to(dtype)).sum()
    if d_lse is not None:
        loss = loss + (torch.where(lse.isfinite(), lse, 0) * d_lse.to(dtype)).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, (q, k, v))]


def magnitudes(case: Case, d_out: Tensor, d_lse: Tensor | None) -> list[Tensor]:
    """The sums behind [out, lse, dq, dk, dv] over absolute values, in float64: what roundings are relative to. A weight
    exp(score - lse) is itself off by the roundings of its exponent, hence the factor."""
    group = case.q.shape[2] // case.k.shape[2]
    q, k, v, grad = (x.double().transpose(1, 2) for x in (case.q, case.k, case.v, d_out))
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out, lse = (x.double() for x in attend(case.q, case.k, case.v, case.mask, case.scale))
    scores = case.scale * q @ k.mT
    size = case.scale * q.abs() @ k.abs().mT
    some = lse.isfinite()[..., None]
    weight = torch.where(case.mask & some, (scores - torch.where(some, lse[..., None], 0)).exp(), 0)
    weight = weight * (1 + size)
    slope = grad.abs() @ v.abs().mT + (grad.abs() * out.transpose(1, 2).abs()).sum(-1, keepdim=True)
    if d_lse is not None:
        slope = slope + d_lse.double().abs()[..., None]
    d_scores = weight * slope * case.scale
    d_k, d_v = d_scores.mT @ q.abs(), weight.mT @ grad.abs()
    d_k, d_v = (x.unflatten(1, (-1, group)).sum(2).transpose(1, 2) for x in (d_k, d_v))
    return [(weight @ v.abs()).transpose(1, 2), size.amax(-1), (d_scores @ k.abs()).transpose(1, 2), d_k, d_v]
