"""Triton backend of block-sparse attention: one forward kernel, dQ, and dK/dV from the inverse lists. Deterministic.

The kernels are imported when first run, so that this module, its refusals and ``genkit doctor`` work without Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl.triton.tile_sizes import (
    Tile,
    architecture,
    bulk_tile,
    choose_tile,
    copies,
    parts_on,
    unpipelined,
)
from genkit.kernels.inputs import triton_refuses
from genkit.kernels.plan.bias import Bias, LowRank, Quadratic
from genkit.kernels.plan.block_plan import BlockPlan

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
    problem = problem_of(plan, bias, inverse=False)
    inputs = _inputs(problem, q, k, v)
    tile, bulk = tile_of("forward", q, k, problem, inputs)
    on_device(q, launch.forward_launch(inputs, out, lse, problem, scale, tile, bulk))
    return out, lse


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    plan: BlockPlan, scale: float, bias: Sequence[Bias],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of q, k, v and of the trainable bias tables."""
    from genkit.kernels.block_sparse.impl.triton import launch

    out, grad_out = launch.unit_last(out), launch.unit_last(grad_out)
    rows, columns = problem_of(plan, bias, inverse=False), problem_of(plan, bias, True, q.shape[2] // k.shape[2])
    inputs, info = _inputs(rows, q, k, v, grad_out), launch.Rows.empty(q, rows)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    on_device(q, launch.prepare_launch(out, grad_out, lse.contiguous(), grad_lse, info))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    factors = bool(bias) and isinstance(bias[0], LowRank)
    per_query = _extra(q, q.shape[1], rows.bias.width) if bias else None
    per_key = _extra(q, k.shape[1], rows.bias.width) if factors else None
    group = q.shape[2] // k.shape[2]
    if factors and group > 1:
        dk, dv = (torch.empty(*x.shape[:2], q.shape[2], x.shape[3], device=x.device) for x in (k, v))
    tile, bulk = tile_of("dq", q, k, rows, inputs)
    on_device(q, launch.dq_launch(inputs, info, dq, per_query, rows, scale, tile, bulk))
    tile, bulk = tile_of("dkv", q, k, columns, inputs)
    on_device(q, launch.dkv_launch(inputs, info, dk, dv, per_key, columns, scale, tile, bulk))
    if factors and group > 1:
        dk, dv = (x.unflatten(2, (-1, group)).sum(3).to(k.dtype) for x in (dk, dv))
    return dq, dk, dv, _bias_gradients(bias, per_query, per_key)


def launch_for(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, tile: Tile, out: Tensor | None = None
):  # fmt: skip
    """One launch of a kernel with a given tile on outputs of its own, for timing. ``out``: where the forward pass
    writes instead, like q."""
    from genkit.kernels.block_sparse.impl.triton import launch
    from genkit.kernels.block_sparse.impl.triton.tile import RULE

    scale = q.shape[-1] ** -0.5
    first, second, third = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    problem = problem_of(plan, (), kernel == "dkv", q.shape[2] // k.shape[2])
    info = launch.Rows.empty(q, problem)
    for x in info[:2]:
        x.zero_()
    inputs = _inputs(problem, q, k, v, q)
    bulk = copies(q.device) and problem.kind != RULE.value and inputs.reachable
    if kernel == "forward":
        first = first if out is None else out
        return launch.forward_launch(inputs, first, _statistics(q), problem, scale, tile, bulk)
    if kernel == "dq":
        return launch.dq_launch(inputs, info, first, None, problem, scale, tile, bulk)
    return launch.dkv_launch(inputs, info, second, third, None, problem, scale, tile, bulk)


def _heavy(problem) -> bool:
    """Whether a call has a bias, or its rule is read axis by axis, as one that measures a distance always is."""
    from genkit.kernels.block_sparse.impl.triton.tile import RULE

    return problem.bias.kind != 0 or problem.kind == RULE.value


def _inputs(problem, *tensors: Tensor):
    from genkit.kernels.block_sparse.impl.triton.launch import Inputs

    q = tensors[0]
    return Inputs.of(*tensors, parts=parts_on(architecture(q.device), q.shape[-1], _heavy(problem)))


def _statistics(q: Tensor) -> Tensor:
    return torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)


def _extra(q: Tensor, length: int, width: int) -> Tensor:
    return torch.empty(q.shape[0], q.shape[2], length, width, dtype=torch.float32, device=q.device)


def on_device(q: Tensor, launch) -> None:
    """Run a launch where a tensor is."""
    if q.device.type == "cuda":
        with torch.cuda.device(q.device):
            launch.run()
    else:
        launch.run()


def tile_of(kernel: str, q: Tensor, k: Tensor, problem, inputs) -> tuple[Tile, bool]:
    """The tile of a call, and whether the copy engine brings its tiles."""
    from genkit.kernels.block_sparse.impl.triton.bias import QUADRATIC
    from genkit.kernels.block_sparse.impl.triton.tile import BITS, RULE

    general = q.shape[2] != k.shape[2] or not problem.even_q
    plain = problem.mask is None and not (kernel == "dkv" and general)
    heavy, light = _heavy(problem), problem.bias.light
    biased, bits = problem.bias.kind != 0, problem.kind == BITS.value
    sizes = problem.block_q, problem.block_k
    channels = sum(width for _, width in inputs.parts)
    bulk = copies(q.device) and (light or not biased) and problem.kind != RULE.value and inputs.reachable
    # where no tile for it fits, a bias takes a heavy one, read through addresses
    bulk = bulk and not (
        light and not bulk_tile(architecture(q.device), kernel, channels, q.dtype, *sizes, bits, light)
    )
    quadratic = problem.bias.kind == QUADRATIC.value
    tile = choose_tile(kernel, channels, q.dtype, q.device, *sizes, plain, heavy, bits, bulk, light, quadratic)
    return unpipelined(tile, architecture(q.device), kernel, bulk or inputs.aligned), bulk


def problem_of(plan: BlockPlan, bias: Sequence[Bias] = (), inverse: bool = False, group: int = 1):
    """The kernel's view of a plan, kept in the plan's cache; the bias belongs to the call. ``group``: query heads that
    share a key head, whose inverse lists are one unless each has a gradient of its own to write."""
    from dataclasses import replace

    from genkit.kernels.block_sparse.impl.triton.plan_tables import translate

    group = group if inverse and not (bias and isinstance(bias[0], LowRank)) else 1
    key = ("triton", inverse, group)
    if key not in plan.cache:
        plan.cache[key] = translate(plan, inverse, group)
    if not bias:
        return plan.cache[key]
    slots = plan.block_q * plan.q_valid.shape[0], plan.block_k * plan.k_valid.shape[0]
    return replace(plan.cache[key], bias=_bias_tables(bias, *slots))


def _bias_tables(bias: Sequence[Bias], slots_q: int, slots_k: int):
    """The record of a bias; a tile reads factors as far as :data:`BEYOND` behind the last block."""
    from genkit.kernels.block_sparse.impl.triton.bias import Factor, LowRankTables, QuadraticTables, padded_rank
    from genkit.kernels.block_sparse.impl.triton.boxes import BEYOND
    from genkit.kernels.block_sparse.impl.triton.launch import BiasTables

    def factor(x: Tensor, slots: int) -> Factor:
        x = x.to(torch.float32).permute(0, 2, 3, 1)
        x = torch.nn.functional.pad(x, (0, slots + BEYOND - x.shape[-1])).contiguous()
        batch, heads, rank, length = x.shape
        return Factor(x, heads * rank * length if batch > 1 else 0, rank * length if heads > 1 else 0, length)

    term = bias[0]
    if isinstance(term, LowRank):
        rank = term.f.shape[-1]
        factors = LowRankTables(factor(term.f, slots_q), factor(term.g, slots_k))
        return BiasTables(factors, 1, rank, padded_rank(rank))
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
