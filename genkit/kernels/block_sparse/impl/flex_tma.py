"""FlexAttention whose Triton kernels fetch keys and values with the tensor memory accelerator of Hopper and later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl import flex
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.block_plan import BlockPlan

PRIORITY = None  # only by name: torch calls the option experimental
OPTIONS = {"USE_TMA": True}

forward, backward = flex.Kernels(OPTIONS).forward, flex.Kernels(OPTIONS).backward


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """Why these inputs cannot run here, or None. Torch itself would run its plain kernels without a word instead."""
    if q.device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(q.device) < (9, 0):
        return f"FlexAttention copies by TMA on NVIDIA GPUs of compute capability 9.0 and later, not on {q.device}"
    if reason := flex.why_not(q, k, v, plan, bias=bias, needs_grad=needs_grad):
        return reason
    for name, x in (("q", q), ("k", k), ("v", v)):
        steps = [stride * x.element_size() for stride in x.stride()[:-1]]
        rows = x.shape[-1] * x.element_size()
        offset = x.storage_offset() * x.element_size()
        if offset % 16 or x.stride(-1) != 1 or any(step % 16 for step in [*steps, rows]):
            return f"TMA reads rows at multiples of 16 bytes; {name} of shape {tuple(x.shape)} has strides {x.stride()}"
    return None
