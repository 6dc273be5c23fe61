"""FlexAttention on FlashAttention 4 (package ``flash-attn-4``): its own kernels walk the block lists."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl import flex
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.block_plan import BlockPlan

PRIORITY = None  # only by name: torch calls the option experimental
OPTIONS = {"BACKEND": "FLASH"}
#: By the first digit of the compute capability: what the plan's blocks of queries and of keys must be multiples of, and
#: the largest head dim. Both query tiles of a Blackwell program share one list.
SIZES = {9: (64, 16, 256), 10: (256, 128, 128), 11: (256, 128, 128)}
#: Hopper's kernels take a block of keys as one tile.
LARGEST_KEYS = {9: 128}

forward, backward = flex.Kernels(OPTIONS).forward, flex.Kernels(OPTIONS).backward


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, bias: Sequence[Bias] = (), needs_grad: bool = False
) -> str | None:
    """Why these inputs cannot run here, or None.

    A mask function that torch can see through would make these kernels skip the block lists and compute every pair; the
    one of a plan reads the plan's tables, so the lists are used.
    """
    if q.device.type != "cuda" or torch.version.hip:
        return f"FlashAttention 4 runs on NVIDIA GPUs, the tensors are on {q.device}"
    major = torch.cuda.get_device_capability(q.device)[0]
    if major not in SIZES:
        return f"FlashAttention 4 takes block lists on compute capability {', '.join(f'{x}.x' for x in SIZES)} only"
    if not _installed():
        return "it needs FlashAttention 4: pip install --pre flash-attn-4"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention 4 takes float16 and bfloat16, not {q.dtype}"
    queries, keys, dim = SIZES[major]
    if q.shape[-1] > dim or q.shape[-1] % 8:
        return f"FlashAttention 4 takes head dims in multiples of 8 up to {dim}, here {q.shape[-1]}"
    most = LARGEST_KEYS.get(major, plan.block_k)
    if plan.block_q % queries or plan.block_k % keys or plan.block_k > most:
        end = f" up to {most}" if major in LARGEST_KEYS else ""
        return (
            f"FlashAttention 4 wants blocks of queries in multiples of {queries} and of keys in multiples of {keys}"
            f"{end}, the plan has {plan.block_q} x {plan.block_k}"
        )
    if needs_grad and any(table.requires_grad for term in bias for table in term.tensors()):
        return "FlashAttention 4 has no gradients of a bias"
    return flex.why_not(q, k, v, plan, bias=bias, needs_grad=needs_grad)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:
        return False
