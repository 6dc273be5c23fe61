"""The launches of per-token selection that are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genkit.kernels.channels import padded
from genkit.kernels.inputs import matrix_unit_of
from genkit.kernels.token_select.impl.triton import backend as selection
from genkit.kernels.token_select.impl.triton import kernels

KERNELS = ("forward", "dq", "dkv", "merge", "sum")
LENGTH, HEADS, BLOCKS = 1024, 4, 8


def tiles_on(arch: str, dim: int, dtype: torch.dtype) -> dict[str, selection.Tile]:
    """The tiles a target gets."""
    return selection.tiles_for(dim, dtype, matrix_unit_of(arch))


def token_select(kernel: str, arch: str, dim: int, dtype: torch.dtype) -> Callable[[], object]:
    """A function that compiles one kernel as its launch would."""

    def view():
        return selection._view(torch.zeros(1, LENGTH, HEADS, dim, dtype=dtype))

    row, part = torch.zeros(1, HEADS, LENGTH), torch.zeros(LENGTH, dim)
    number = torch.zeros(LENGTH, dtype=torch.int32)
    room = 3 * LENGTH
    work = selection.Work(number, number, number, 16 * LENGTH, room, BLOCKS, HEADS, 0, 0)
    parts = selection.Parts(number, number, 16, room, LENGTH, HEADS, 0, 0)
    constants = {"D": dim}
    if kernel in ("merge", "sum"):
        buffers = (part, part[:, 0].contiguous(), view(), row) if kernel == "merge" else (part, view())
        arguments = (*buffers, parts, LENGTH) if kernel == "merge" else (*buffers, parts)
        options = {"DP": padded(dim), "TILE": 32, "num_warps": 4, "num_stages": 1}
        function = kernels.merge_kernel if kernel == "merge" else kernels.sum_kernel
    else:
        tile = tiles_on(arch, dim, dtype)[kernel]
        options = {
            "PARTS": selection.parts_of(dim),
            "TILE_Q": tile.queries,
            "TILE_K": tile.keys,
            "STAGES": tile.stages,
            **selection._options(tile),
        }
        if kernel == "forward":
            function = kernels.forward_kernel
            arguments = (view(), view(), view(), part, row, work, number, 0.1, 1)
        elif kernel == "dq":
            function = kernels.dq_kernel
            arguments = (view(), view(), view(), view(), part, row, row, work, number, 0.1, LENGTH, 1)
        else:
            function = kernels.dkv_kernel
            arguments = (*(view() for _ in range(6)), row, row, number, number, number, number, 16 * LENGTH, number)
            arguments = (*arguments, 0.1, LENGTH, HEADS, 1, BLOCKS)
    options.setdefault("enable_fp_fusion", True)
    return lambda: function.warmup(*arguments, grid=(1,), **constants, **options)
