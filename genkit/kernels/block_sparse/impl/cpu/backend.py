"""Block-sparse attention on the CPU: in native kernels, and where those cannot be had or do not take the inputs, with
torch's own flash kernel. The latter is what this file and its neighbours ``cpu_*`` do.

Heads are laid out in memory one after the other, as many at a time as a cache holds. Keys that lie side by side are
used where they are; others are copied together for a few query blocks at a time. Where neighbouring query blocks see
nearly everything, what they share is done for all of them at once. The backward pass copies keys again; dK and dV are
added in a fixed order, so results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl.cpu.pieces import Heads, Piece, Work
from genkit.kernels.block_sparse.impl.cpu.plan_lists import PlanLists
from genkit.kernels.inputs import unit_rows
from genkit.kernels.native.attention import passes as native
from genkit.kernels.native.compiler import has_amx
from genkit.kernels.plan import bias_values as cpu_bias
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.block_plan import BlockPlan

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """Why these inputs cannot run here, or None."""
    if q.device.type != "cpu":
        return f"the tensors are on {q.device}, this backend runs on the CPU"
    return None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What torch's kernel computes in. bfloat16 stays where the processor multiplies it natively (AMX); elsewhere its
    bfloat16 and float16 backward passes are several times slower than float32, so they are widened by the piece."""
    if dtype == torch.bfloat16 and has_amx():
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias]
) -> tuple[Tensor, Tensor]:
    """out (B, Nq, H, D) like q and lse (B, H, Nq)."""
    if native.why_not(q, plan, scale) is None:
        return native.forward(q, k, v, PlanLists(plan, native.with_tiles(q.dtype)), scale, bias)
    work = Work(q, k, v, plan, bias, compute_dtype(q.dtype))
    batch, n_q, heads, _ = q.shape
    kind = work.wide if work.schedule.merges else q.dtype
    if work.schedule.covers:
        out, lse = q.new_empty(q.shape, dtype=kind), q.new_empty((batch, n_q, heads, 1), dtype=work.wide)
    else:
        out = torch.zeros(q.shape, dtype=kind)
        lse = torch.full((batch, n_q, heads, 1), -torch.inf, dtype=work.wide)
    for part in work.heads():
        outs, sums = part.of(out), part.of(lse)
        for piece in work.pieces(part):
            found, total = _flash(piece.q, piece.k, piece.v, attn_mask=piece.mask, scale=scale)
            if piece.dead is not None:
                found = found.masked_fill(piece.dead[:, None, :, None], 0)
                total = total.masked_fill(piece.dead[:, None], -torch.inf)
            total = total.unsqueeze(-1)
            if piece.adds:
                before = (piece.rows.read(x).to(work.wide) for x in (outs, sums))
                found, total = _merged(*before, found.to(work.wide), total.to(work.wide))
            piece.rows.write(outs, found)
            piece.rows.write(sums, total)
    return out.to(q.dtype), lse[..., 0].transpose(1, 2).contiguous()


def _merged(out: Tensor, lse: Tensor, more: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of two parts; lse and total have a last axis of one."""
    both = torch.logaddexp(lse, total)
    share = (total - both).exp_().masked_fill_(total == -torch.inf, 0)
    return torch.lerp(out, more, share), both


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
    """Gradients of q, k, v and of every bias table that may have one."""
    sums = cpu_bias.gradients(bias)
    if native.why_not(q, plan, scale) is None:
        delta = native.row_term(grad_out, grad_lse, out, lse)
        lists = PlanLists(plan, native.with_tiles(q.dtype))
        found = native.backward(grad_out, delta, q, k, v, lse, lists, scale, bias, sums)
        return *found, _tables(bias, sums)
    work = Work(q, k, v, plan, bias, compute_dtype(q.dtype), backward=True)
    kind = work.wide if work.schedule.merges else q.dtype
    d_q = q.new_empty(q.shape, dtype=kind) if work.schedule.covers else torch.zeros(q.shape, dtype=kind)
    d_k, d_v = (torch.empty(x.shape, dtype=x.dtype) for x in (k, v))
    grad_out, out, lse = unit_rows(grad_out), unit_rows(out), lse.transpose(1, 2).unsqueeze(-1)
    by_hand = grad_lse is not None or any(sums)
    if grad_lse is not None:
        # rows without a key have a constant lse: what arrives there belongs to nobody
        grad_lse = grad_lse.transpose(1, 2).unsqueeze(-1).masked_fill(lse == -torch.inf, 0)
    for part in work.heads():
        grads, outs = part.of(grad_out), part.of(out)
        keys, values, queries = work.accumulator(part.k), work.accumulator(part.v), part.of(d_q)
        for piece in work.pieces(part):
            rows = piece.rows
            seen = rows.read(part.of(lse))[..., 0]
            seen = seen.masked_fill(seen == -torch.inf, 0)  # rows that see nothing: all their scores are -inf
            row_grad, row_out = (rows.read(x).to(work.dtype) for x in (grads, outs))
            if by_hand:
                extra = None if grad_lse is None else rows.read(part.of(grad_lse))[..., 0]
                parts = _by_hand(part, piece, row_grad, row_out, seen, extra, scale, bias, sums)
            else:
                parts = _flash_backward(
                    row_grad, piece.q, piece.k, piece.v, row_out, seen, 0.0, False, attn_mask=piece.mask, scale=scale
                )
            rows.write(queries, parts[0] + rows.read(queries) if piece.adds else parts[0])
            work.add(keys, parts[1], piece)
            work.add(values, parts[2], piece)
        for into, total in ((d_k, keys), (d_v, values)):
            work.keys_of(into, part).copy_(total[:, : into.shape[1]])
    return d_q.to(q.dtype), d_k, d_v, _tables(bias, sums)


def _tables(bias: Sequence[Bias], sums: list[list[Tensor]]) -> list[Tensor]:
    """The gradients that were added up, in the dtypes of their tables."""
    tables = [table.tensors()[at] for table in bias for at in table.trainable]
    return [total.to(table.dtype) for table, total in zip(tables, (s for part in sums for s in part), strict=True)]


def _by_hand(
    heads: Heads,
    piece: Piece,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    scale: float,
    bias: Sequence[Bias],
    sums: list[list[Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass with the scores' gradient in hand, for a gradient of lse or of a bias: row by row,
    dS = P * (dO V^T - rowsum(dO * O) + dlse)."""
    shape_q, shape_k = piece.q.shape, piece.k.shape
    wide = lse.dtype
    d_q = torch.empty(shape_q, dtype=wide)
    d_k, d_v = torch.empty(shape_k, dtype=wide), torch.empty(shape_k, dtype=wide)
    for at, (head, start) in enumerate(piece.rows.where):
        here = divmod(at, shape_q[1])
        q, k, v, g, o = (x[here].to(wide) for x in (piece.q, piece.k, piece.v, grad, out))
        weight = torch.addmm(lse[here][:, None], q, k.mT, beta=-1, alpha=scale)
        if piece.mask is not None:
            weight += piece.mask[0, 0]
        weight.exp_()
        rest = torch.linalg.vecdot(g, o)
        if grad_lse is not None:
            rest = rest - grad_lse[here]
        torch.mm(weight.mT, g, out=d_v[here])
        d_scores = torch.addmm(rest[:, None], g, v.mT, beta=-1).mul_(weight)
        if any(sums):
            stop = start + piece.rows.queries
            cpu_bias.accumulate(bias, sums, d_scores, heads.batch, heads.first + head, start, stop, piece.tokens)
        d_q[here] = torch.mm(d_scores, k).mul_(scale)
        d_k[here] = torch.mm(d_scores.mT, q).mul_(scale)
    return d_q, d_k, d_v
