"""Agent attention: a few agent tokens read all keys, then every query reads the agents. Linear cost in tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genkit.errors import UsageError
from genkit.kernels.plan.bias import LowRank

__all__ = ["agent_attention"]


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    scale: float | None = None,
    read_scale: float | None = None,
    gather_bias: Tensor | None = None,
    read_bias: Tensor | None = None,
    gather_factors: LowRank | None = None,
    read_factors: LowRank | None = None,
    shortcut: float = 0.0,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
) -> Tensor:
    """``softmax(read_scale q A^T + B2) [softmax(scale A k^T + B1) v] + shortcut * v`` (Agent Attention).

    Two dense attentions in a row, through torch's scaled dot product attention: no N x N tensor, and the fastest dense
    kernel of the machine serves both. A fused kernel would only save the n agent values, which is nothing.

    Learned biases come as factors (the ``*_factors``): they enter the scores as R more features of queries and keys, so
    that no n x N tensor is made and their gradients come with those of the attention.

    Args:
        q: (B, Nq, H, D). k, v: (B, Nk, Hk, D), Hk divides H. agents: (B, n, H, D), n much smaller than Nk.
        scale: softmax scale of the agents reading the keys, default 1/sqrt(D).
        read_scale: softmax scale of the queries reading the agents, default ``scale``. Training-free use sharpens it:
            ``(1/sqrt(D)) ** 0.3``.
        gather_bias: added to the agents' scores, broadcast to (B, H, n, Nk).
        read_bias: added to the queries' scores, broadcast to (B, H, Nq, n + extra).
        gather_factors: added to the agents' scores besides, ``f`` (B|1, n, H|1, R), ``g`` (B|1, Nk, H|1, R). Computed
            in the dtype of q.
        read_factors: added to the queries' scores of the agents besides (extra keys get none), ``f``
            (B|1, Nq, H|1, R), ``g`` (B|1, n, H|1, R).
        shortcut: weight of the values added to the output; needs as many queries as keys, and Hk = H.
        extra_k, extra_v: (B, M, Hk, D), keys that queries read directly beside the agents (text tokens of a joint
            model).

    Returns:
        (B, Nq, H, D), differentiable in every tensor.

    Cost: 4 * D * n * (Nk + Nq) per head, against 4 * D * Nq * Nk for dense attention. Factors of rank R make D into
    D + R, rounded up to a multiple of 8; above 256 the fastest kernels of most machines do not serve.

    Raises:
        UsageError: shapes that do not fit together.
    """
    _check(q, k, v, agents, shortcut, extra_k, extra_v)
    first = q.shape[-1] ** -0.5 if scale is None else scale
    second = first if read_scale is None else read_scale
    _check_factors("gather_factors", gather_factors, first, agents, k)
    _check_factors("read_factors", read_factors, second, q, agents)
    values = _dense(*_widened(agents, k, v, first, gather_factors), first, gather_bias)[..., : v.shape[-1]]
    keys = agents
    if extra_k is not None:
        group = q.shape[2] // extra_k.shape[2]
        keys = torch.cat([keys, extra_k.repeat_interleave(group, 2)], 1)
        values = torch.cat([values, extra_v.repeat_interleave(group, 2)], 1)
    out = _dense(*_widened(q, keys, values, second, read_factors), second, read_bias)[..., : v.shape[-1]]
    return out + shortcut * v if shortcut else out


def _widened(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: LowRank | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with the bias as more features: ``scale * q' k'^T = scale * q k^T + f g^T`` for the first keys.

    The values get as many zeros, because the kernels that need no N x N tensor want equal widths.
    """
    if bias is None:
        return q, k, v
    heads, width, rank = q.shape[2], q.shape[3], bias.f.shape[-1]
    more = rank + -(width + rank) % 8
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    f = bias.f.to(q.dtype).expand(q.shape[0], -1, heads, -1) / scale
    g = bias.g.to(q.dtype).expand(q.shape[0], -1, heads, -1)
    f, g = F.pad(f, (0, more - rank)), F.pad(g, (0, more - rank, 0, 0, 0, k.shape[1] - g.shape[1]))
    return torch.cat([q, f], -1), torch.cat([k, g], -1), F.pad(v, (0, more))


def _check_factors(name: str, bias: LowRank | None, scale: float, q: Tensor, k: Tensor) -> None:
    if bias is None:
        return
    reason = bias.misfit(q.shape[0], q.shape[1], k.shape[1], q.shape[2])
    if reason is not None:
        raise UsageError(f"agent_attention, {name}: {reason}")
    if not scale:
        raise UsageError(f"agent_attention, {name}: needs a softmax scale other than 0")


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if bias is None else bias.to(q.dtype),
        scale=scale,
        enable_gqa=k.shape[2] != q.shape[2],
    )
    out = out.transpose(1, 2)
    return _with_nan(out, q, k) if q.device.type == "cpu" else out


def _with_nan(out: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """torch's dense attention on the CPU takes a row of NaN scores for a masked one and answers 0; NaN must show."""
    keys = k.isnan().any(-1).any(1).repeat_interleave(q.shape[2] // k.shape[2], 1)
    return out.masked_fill((q.isnan().any(-1) | keys[:, None])[..., None], torch.nan)


def _check(q, k, v, agents, shortcut, extra_k, extra_v) -> None:
    b, _, h, d = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or k.shape[0] != b or k.shape[3] != d:
        raise UsageError(
            f"agent_attention needs q (B, Nq, H, D) and k, v (B, Nk, Hk, D), got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    if h % k.shape[2]:
        raise UsageError(f"query heads must be a multiple of key heads, got {h} and {k.shape[2]}")
    if agents.dim() != 4 or (agents.shape[0], *agents.shape[2:]) != (b, h, d) or agents.shape[1] < 1:
        raise UsageError(f"agents must be ({b}, n, {h}, {d}) with n >= 1, got {tuple(agents.shape)}")
    given = {"q": q, "k": k, "v": v, "agents": agents}
    if len({(x.dtype, x.device) for x in given.values()}) > 1:
        told = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in given.items())
        raise UsageError(f"agent_attention needs one dtype and one device, got {told}")
    if shortcut and v.shape != q.shape:
        raise UsageError(f"shortcut needs one value per query, got v {tuple(v.shape)} for q {tuple(q.shape)}")
    if (extra_k is None) != (extra_v is None):
        raise UsageError("extra_k and extra_v go together, got only one of them")
    if extra_k is not None and (extra_k.shape != extra_v.shape or extra_k.shape[2:] != k.shape[2:]):
        raise UsageError(
            f"extra_k and extra_v must be ({b}, M, {k.shape[2]}, {d}), got {tuple(extra_k.shape)} and "
            f"{tuple(extra_v.shape)}"
        )
