"""The specification of block-sparse attention in plain torch: float32 inside (float64 for float64), autograd, one query
block at a time. Shares no code with the fast backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.recompute import gradients
from genkit.kernels.plan.bias import Bias, LowRank, Quadratic
from genkit.kernels.plan.block_plan import BlockPlan

PRIORITY = 90  # in the search of "auto", see genkit.kernels.discovery


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """The reference runs everywhere."""
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias] = ()
) -> tuple[Tensor, Tensor]:
    """Differentiable attention of q (B, Nq, H, D) over k, v (B, Nk, Hk, D), tokens in block order.

    Returns:
        out (B, Nq, H, D) in q's dtype, lse (B, H, Nq) float32 (float64 for float64 inputs).
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, n_q, heads, _ = q.shape
    group = heads // k.shape[2]
    queries = q.to(wide).transpose(1, 2)
    keys = k.to(wide).transpose(1, 2).repeat_interleave(group, 1)
    values = v.to(wide).transpose(1, 2).repeat_interleave(group, 1)
    full, partial = plan.full_count.tolist(), plan.partial_count.tolist()
    rows = []
    for i in range(plan.blocks_q):
        start, stop = i * plan.block_q, min((i + 1) * plan.block_q, n_q)
        pieces = []
        for b in range(plan.batch):
            across = slice(None) if plan.batch == 1 else slice(b, b + 1)
            line = []
            for h in range(plan.heads):
                head = slice(None) if plan.heads == 1 else slice(h, h + 1)
                some = b, h, i, slice(partial[b][h][i])
                at = plan.full_index[b, h, i, : full[b][h][i]], plan.partial_index[some]
                shown = None if plan.tiles is None else _shown(plan, plan.tiles.index[some], len(at[0]), stop - start)
                line.append(_row(queries, keys, values, plan, scale, bias, (across, head), (start, stop), at, shown))
            pieces.append([torch.cat(part, 1) for part in zip(*line, strict=True)])
        rows.append([torch.cat(part, 0) for part in zip(*pieces, strict=True)])
    out, lse = (torch.cat(part, 2) for part in zip(*rows, strict=True))
    return out.transpose(1, 2).to(q.dtype), lse


def _shown(plan, tiles, full, rows) -> Tensor:
    """(rows, slots) bool: the bits of a row of tiles, behind as many slots of full blocks."""
    slot = torch.arange(plan.block_k, device=tiles.device)
    words = plan.tiles.words[tiles.long(), :rows]
    bits = (words[:, :, slot // 32] >> (slot % 32).int()) & 1
    return torch.nn.functional.pad(bits.transpose(0, 1).flatten(1) == 1, (full * plan.block_k, 0), value=True)


def _row(queries, keys, values, plan, scale, bias, where, span, lists, shown):
    """One query block against the keys its lists name: out (b, h, rows, D), lse (b, h, rows). ``shown`` are the bits of
    all slots of these blocks, None in a plan without bit tiles."""
    across, head = where
    full, partial = (blocks.long() for blocks in lists)
    slot = torch.arange(plan.block_k, device=keys.device)
    token = (torch.cat([full, partial])[:, None] * plan.block_k + slot).flatten()
    valid = (slot < plan.k_valid[torch.cat([full, partial])][:, None]).flatten()
    sure = torch.arange(len(token), device=keys.device) < len(full) * plan.block_k
    token, sure = token[valid], sure[valid]
    row = torch.arange(*span, device=keys.device)
    i = span[0] // plan.block_q
    alive = row - span[0] < plan.q_valid[i]
    q, k, v = (
        queries[across, head, span[0] : span[1]],
        keys[across, head][:, :, token],
        values[across, head][:, :, token],
    )
    scores = q @ k.mT * scale
    for term in bias:
        scores = scores + _bias(term, across, head, row, token).to(scores.dtype)
    hidden = scores == -torch.inf  # a bias may hide a pair as a mask does
    seen = (sure | _visible(plan.rule, across, row, token)) & alive[:, None]
    if shown is not None:
        seen = seen & shown[:, valid]
    seen = seen & ~hidden
    some = seen.any(-1, keepdim=True)
    # a row without a key is computed as if its scores were 0 and overwritten, so that no gradient becomes NaN
    scores = scores.masked_fill(~seen & some, -torch.inf).masked_fill(~some, 0)
    if not len(token):
        always = torch.ones((), dtype=torch.bool, device=q.device)
        return q.masked_fill(always, 0), q[..., 0].masked_fill(always, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weight = (scores - lse[..., None]).exp()
    return (weight @ v).masked_fill(~some, 0), lse.masked_fill(~some[..., 0], -torch.inf)


def _visible(rule, across, row, token) -> Tensor:
    """The mask specification by its definition: (b|1, 1, rows, tokens) bool."""
    if rule is None:
        return torch.ones(1, 1, len(row), len(token), dtype=torch.bool, device=row.device)
    groups = rule.k_group if rule.k_group.shape[0] == 1 else rule.k_group[across]
    code = rule.visible[rule.q_group[row].long()][:, groups[:, token].long()].transpose(0, 1)
    at = rule.k_pos[token][None]
    window = ((rule.q_lo[row][:, None] <= at) & (at < rule.q_hi[row][:, None])).all(-1)
    if rule.radius2 is not None:
        window &= (rule.q_pos[row][:, None] - at).square().sum(-1) < rule.radius2
    return ((code == 1) | ((code == 2) & window))[:, None]


def _bias(term: Bias, across, head, row, token) -> Tensor:
    """(b|1, h|1, rows, tokens) of one term."""
    if isinstance(term, LowRank):
        f, g = (side if side.shape[0] == 1 else side[across] for side in (term.f, term.g))
        f, g = (side if side.shape[2] == 1 else side[:, :, head] for side in (f, g))
        wide = torch.promote_types(f.dtype, torch.float32)
        f, g = f[:, row].to(wide), g[:, token].to(wide)
        product = torch.einsum("bihr,bjhr->bhij", f.detach(), g.detach())
        # the gradient of a hidden pair is 0, not 0 times infinity
        f, g = (side.masked_fill(side.isinf(), 0) for side in (f, g))
        finite = torch.einsum("bihr,bjhr->bhij", f, g)
        return torch.where(product.isfinite(), finite, product)
    if isinstance(term, Quadratic):
        weight = term.weight if term.weight.shape[0] == 1 else term.weight[head]
        apart = (term.q_pos[row][:, None] - term.k_pos[token][None]).abs() - term.hinge
        gain = term.q_gain[row][:, None] * term.k_gain[token][None]
        return (-gain * torch.einsum("ha,ija->hij", weight, apart.clamp(min=0) ** 2))[None]
    total = 0
    for axis, values in enumerate(term.values):
        values = values if values.shape[0] == 1 else values[head]
        place = term.q_pos[row, axis][:, None] - term.k_pos[token, axis][None] + values.shape[1] // 2
        inside = (place >= 0) & (place < values.shape[1])
        total = total + values[:, place.clamp(0, values.shape[1] - 1)].where(inside, 0)
    return total[None]


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias]
) -> tuple[Tensor, Tensor]:
    """:func:`attention` without a graph."""
    with torch.no_grad():
        out, lse = attention(q, k, v, plan, scale, bias)
    return out.contiguous(), lse.contiguous()


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    scale: float,
    bias: Sequence[Bias],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and of the trainable bias tables, by autograd through a second run."""
    return gradients(lambda q, k, v, bias: attention(q, k, v, plan, scale, bias), grad_out, grad_lse, q, k, v, bias)
