"""Scores from int8 queries and keys, softmax and values as in the exact kernel: approximate, forward only.

Source: SageAttention, arXiv 2410.02367 (keys without their mean, INT8 products of queries and keys; steps per token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genkit.errors import UnsupportedError
from genkit.kernels.block_sparse.impl.triton import backend as exact
from genkit.kernels.block_sparse.impl.triton_int8.quantise import quantise, split_mean
from genkit.kernels.channels import one_part
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.block_plan import BlockPlan


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    if needs_grad:
        return "queries and keys rounded to int8 have no gradient; use backend='triton', or call under torch.no_grad()"
    if bias:
        return "it takes no bias; use backend='triton'"
    return exact.why_not(q, k, v, plan)


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, bias: Sequence[Bias] = ()
) -> tuple[Tensor, Tensor]:
    """out like q, lse (B, H, Nq) float32; tokens in block order. Quantising reads and writes q and k once more."""
    from genkit.kernels.block_sparse.impl.triton import launch
    from genkit.kernels.block_sparse.impl.triton.tile import Steps

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
    keys, mean = split_mean(k)
    (q8, q_steps), (k8, k_steps) = quantise(q), quantise(keys)
    parts = one_part(max(32, q.shape[-1]))  # a product of int8 takes 32 channels at a time, and not all second parts do
    inputs = replace(launch.Inputs.of(q8, k8, v, parts=parts), steps=Steps(q_steps, k_steps))
    problem = exact.problem_of(plan)
    tile, _ = exact.tile_of("forward", q, k, problem, inputs)
    exact.on_device(q, launch.forward_launch(inputs, out, lse, problem, scale, tile))
    group = q.shape[2] // k.shape[2]
    return out, lse + scale * torch.einsum("bnhd,bhd->bhn", q.float(), mean[:, 0].repeat_interleave(group, 1))


def backward(*inputs: object) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """There is none; :func:`why_not` says so before."""
    raise UnsupportedError("backend 'triton_int8' has no backward pass")
