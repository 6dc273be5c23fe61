"""Triton backend of block-sparse attention: one forward kernel, dQ, and dK/dV from the inverse lists. Deterministic.

The kernels are imported when first run, so that this module, its refusals and ``genkit doctor`` work without Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile, architecture, choose_tile
from genkit.kernels.inputs import triton_refuses
from genkit.kernels.plan.bias import Bias, LowRank, Quadratic
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import ALL, WINDOW

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256
MAX_RANK = 64
MAX_GROUPS = 31
MAX_ROW = 1 << 22


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    reason = triton_refuses(q, DTYPES, MAX_DIM)
    if reason is not None:
        return reason
    if q.device.type == "cuda" and architecture(q.device) is None:
        return f"no kernel is built for compute capability {torch.cuda.get_device_capability(q.device)}; it needs 8.0"
    if max(q.shape[2], k.shape[2]) * q.shape[3] >= MAX_ROW:
        return f"heads * head dim must stay below {MAX_ROW}"
    if plan.rule is not None and plan.rule.visible.shape[1] > MAX_GROUPS:
        return f"the rule has {plan.rule.visible.shape[1]} key groups, at most {MAX_GROUPS} fit its bit masks"
    return _why_not_bias(bias)


def _why_not_bias(bias: Sequence[Bias]) -> str | None:
    if len(bias) > 1:
        return f"it takes one bias term, got {len(bias)}; join low-rank terms by concatenating their factors"
    for term in bias:
        if not isinstance(term, (LowRank, Quadratic)):
            return f"it has no {type(term).__name__} bias, only LowRank and Quadratic"
        if isinstance(term, LowRank) and term.f.shape[-1] > MAX_RANK:
            return f"the bias has rank {term.f.shape[-1]}, at most {MAX_RANK} fit a tile"
        if isinstance(term, Quadratic) and term.q_pos.shape[1] > 4:
            return f"the bias has {term.q_pos.shape[1]} axes, at most 4"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias]
) -> tuple[Tensor, Tensor]:
    """out like q, lse (B, H, Nq) float32; tokens in block order."""
    from genkit.kernels.block_sparse.impl.triton import launch

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = _statistics(q)
    problem = _problem(plan, bias, inverse=False)
    tile = _tile("forward", q, k, problem, bool(bias))
    _on_device(q, launch.forward_launch(launch.Inputs.of(q, k, v), out, lse, problem, scale, tile))
    return out, lse


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    plan: BlockPlan, scale: float, bias: Sequence[Bias],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of q, k, v and of the trainable bias tables."""
    from genkit.kernels.block_sparse.impl.triton import launch

    out, grad_out = launch.unit_last(out), launch.unit_last(grad_out)
    inputs, info = launch.Inputs.of(q, k, v, grad_out), launch.Rows(_statistics(q), _statistics(q))
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    _on_device(q, launch.prepare_launch(out, grad_out, lse.contiguous(), grad_lse, info))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    rows, columns = _problem(plan, bias, inverse=False), _problem(plan, bias, inverse=True)
    per_query = _extra(q, q.shape[1], rows.bias.width) if bias else None
    per_key = _extra(q, k.shape[1], rows.bias.width) if bias and isinstance(bias[0], LowRank) else None
    tile = _tile("dq", q, k, rows, bool(bias))
    _on_device(q, launch.dq_launch(inputs, info, dq, per_query, rows, scale, tile))
    tile = _tile("dkv", q, k, columns, bool(bias))
    _on_device(q, launch.dkv_launch(inputs, info, dk, dv, per_key, columns, scale, tile))
    return dq, dk, dv, _bias_gradients(bias, per_query, per_key)


def launch_for(kernel: str, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, tile: Tile):
    """One launch of a kernel with a given tile on outputs of its own, for timing."""
    from genkit.kernels.block_sparse.impl.triton import launch

    scale, row = q.shape[-1] ** -0.5, torch.zeros(q.shape[0], q.shape[2], q.shape[1], device=q.device)
    first, second, third = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    problem, info = _problem(plan, (), inverse=kernel == "dkv"), launch.Rows(row, row)
    if kernel == "forward":
        return launch.forward_launch(launch.Inputs.of(q, k, v), first, row, problem, scale, tile)
    inputs = launch.Inputs.of(q, k, v, q)
    if kernel == "dq":
        return launch.dq_launch(inputs, info, first, None, problem, scale, tile)
    return launch.dkv_launch(inputs, info, second, third, None, problem, scale, tile)


def _statistics(q: Tensor) -> Tensor:
    return torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)


def _extra(q: Tensor, length: int, width: int) -> Tensor:
    return torch.empty(q.shape[0], q.shape[2], length, width, dtype=torch.float32, device=q.device)


def _on_device(q: Tensor, launch) -> None:
    if q.device.type == "cuda":
        with torch.cuda.device(q.device):
            launch.run()
    else:
        launch.run()


def _tile(kernel: str, q: Tensor, k: Tensor, problem, biased: bool) -> Tile:
    general = q.shape[2] != k.shape[2] or not problem.even_q
    plain = problem.mask is None and not (kernel == "dkv" and general)
    heavy = biased or getattr(problem.mask, "radius2", None) is not None
    bits = isinstance(problem.mask, Tensor)
    sizes = problem.block_q, problem.block_k
    return choose_tile(kernel, q.shape[-1], q.dtype, q.device, *sizes, plain, heavy, bits)


def _problem(plan: BlockPlan, bias: Sequence[Bias], inverse: bool):
    """The kernel's view of a plan, kept in the plan's cache; the bias belongs to the call."""
    from dataclasses import replace

    key = ("triton", inverse)
    if key not in plan.cache:
        plan.cache[key] = _translate(plan, inverse)
    return replace(plan.cache[key], bias=_bias_tables(bias)) if bias else plan.cache[key]


def _translate(plan: BlockPlan, inverse: bool):
    from genkit.kernels.block_sparse.impl.triton.launch import Problem
    from genkit.kernels.block_sparse.impl.triton.tile import BITS, NO_MASK, RULE, Lists, Tokens

    source = plan.inverse() if inverse else plan
    part_tile = None
    if plan.tiles is not None:
        part_tile = (source.partial_tile if inverse else plan.tiles.index).contiguous()
    full_count, full_index, part_count, part_index = (
        x.to(torch.int32).contiguous()
        for x in (source.full_count, source.full_index, source.partial_count, source.partial_index)
    )
    batch, heads, blocks = full_count.shape
    # One look at the device for both questions.
    partial, even = torch.stack([part_count.any(), (plan.q_valid == plan.block_q).all()]).tolist()
    lists = Lists(
        full_count,
        full_index,
        full_index.shape[-1],
        part_count if partial else None,
        part_index if partial else None,
        part_index.shape[-1] if partial else None,
        part_tile if partial else None,
        heads * blocks if batch > 1 else 0,
        blocks if heads > 1 else 0,
    )
    tokens = Tokens(plan.n_q, plan.n_k, plan.q_valid.contiguous(), plan.k_valid.contiguous())
    sizes = plan.block_q, plan.block_k, plan.blocks_q, plan.blocks_k
    if partial and plan.tiles is not None:
        return Problem(*sizes, lists, tokens, BITS.value, plan.tiles.words.contiguous(), 0, even)
    rule = _rule_tables(plan) if partial else None
    if rule is None:
        return Problem(*sizes, lists, tokens, NO_MASK.value, None, 0, even)
    return Problem(*sizes, lists, tokens, RULE.value, rule, plan.rule.axes, even)


def _rule_tables(plan: BlockPlan):
    """The rule as bit masks and axis-major tables; None when it hides nothing inside a partial block."""
    from genkit.kernels.block_sparse.impl.triton.tile import RuleTables

    rule = plan.rule
    if rule is None:
        return None
    axis_major = [t.T.contiguous() for t in (rule.q_lo, rule.q_hi, rule.k_pos)]
    q_pos = rule.q_pos.T.contiguous() if rule.radius2 is not None else None
    everything = window = bit = None
    if rule.visible.numel() > 1 or int(rule.visible[0, 0]) != WINDOW:
        powers = torch.ones_like(rule.visible, dtype=torch.int32) << torch.arange(
            rule.visible.shape[1], dtype=torch.int32, device=rule.device
        )
        query_group = rule.q_group.long()
        everything = (powers * (rule.visible == ALL)).sum(1, dtype=torch.int32)[query_group]
        window = (powers * (rule.visible == WINDOW)).sum(1, dtype=torch.int32)[query_group]
        bit = torch.ones_like(rule.k_group, dtype=torch.int32) << rule.k_group.to(torch.int32)
    shared = rule.k_group.shape[0] == 1
    return RuleTables(
        *axis_major, q_pos, rule.radius2, everything, window, bit, 0 if shared else rule.n_k, rule.n_q, rule.n_k
    )


def _bias_tables(bias: Sequence[Bias]):
    from genkit.kernels.block_sparse.impl.triton.bias import Factor, LowRankTables, QuadraticTables
    from genkit.kernels.block_sparse.impl.triton.launch import BiasTables

    def factor(x: Tensor) -> Factor:
        x = x.to(torch.float32).permute(0, 2, 3, 1).contiguous()
        batch, heads, rank, length = x.shape
        return Factor(x, heads * rank * length if batch > 1 else 0, rank * length if heads > 1 else 0, length)

    term = bias[0]
    if isinstance(term, LowRank):
        rank = term.f.shape[-1]
        return BiasTables(LowRankTables(factor(term.f), factor(term.g)), 1, rank, 1 << (rank - 1).bit_length())
    axes = term.q_pos.shape[1]
    q_pos, k_pos = (x.to(torch.float32).T.contiguous() for x in (term.q_pos, term.k_pos))
    weight, hinge, q_gain, k_gain = (
        x.to(torch.float32).contiguous() for x in (term.weight, term.hinge, term.q_gain, term.k_gain)
    )
    stride = axes if weight.shape[0] > 1 else 0
    tables = QuadraticTables(q_pos, k_pos, weight, stride, hinge, q_gain, k_gain, q_pos.shape[1], k_pos.shape[1])
    return BiasTables(tables, 2, axes, 1 << (axes - 1).bit_length())


def _bias_gradients(bias: Sequence[Bias], per_query: Tensor | None, per_key: Tensor | None) -> list[Tensor]:
    """Sum what the kernels left per batch, head and token down to the shape of each trainable table."""
    if not bias:
        return []
    term = bias[0]
    if isinstance(term, LowRank):
        return [_collect(per_query, term.f), _collect(per_key, term.g)]
    found = per_query[..., : term.q_pos.shape[1]].sum((0, 2))
    found = found if term.weight.shape[0] > 1 else found.sum(0, keepdim=True)
    return [found.to(term.weight.dtype)]


def _collect(extra: Tensor, like: Tensor) -> Tensor:
    """(B, H, N, WIDTH) to the shape of a factor (B|1, N, H|1, R)."""
    found = extra[..., : like.shape[-1]].transpose(1, 2)
    if like.shape[0] == 1:
        found = found.sum(0, keepdim=True)
    if like.shape[2] == 1:
        found = found.sum(2, keepdim=True)
    return found.to(like.dtype).contiguous()
