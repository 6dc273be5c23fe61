"""The kernel launches whose binaries are checked: the shapes are small, the code is that of any length."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genkit.kernels.block_sparse.block_sizes import Tile, candidates, fit
from genkit.kernels.block_sparse.triton_launch import (
    Launch,
    Problem,
    dkv_launch,
    dq_launch,
    forward_launch,
    prepare_launch,
)
from genkit.kernels.block_sparse.triton_tile import Lists, RuleTables, Tokens

LENGTH, HEADS, BLOCK = 1024, 4, 128
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def _table(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _problem(rule: bool, block: int, inverse: bool) -> Problem:
    rows = LENGTH // block
    count, index = _table(1, HEADS, rows), _table(1, HEADS, rows, 7)
    # Without a rule there are still partial blocks: ragged tails.
    lists = Lists(count, index, 7, count, index, 7, HEADS * rows, rows)
    tables = None
    if rule:
        axis, group = _table(3, LENGTH), _table(LENGTH)
        tables = RuleTables(axis, axis, axis, None, None, group, group, _table(1, LENGTH), 0, LENGTH, LENGTH)
    tokens = Tokens(LENGTH, LENGTH, _table(rows), _table(rows))
    return Problem(block, block, rows, rows, lists, tokens, tables, 3 if rule else 1, True)


def tile_of(arch: str, kernel: str, dim: int, dtype: torch.dtype, rule: bool, block: int) -> Tile:
    """The tile that a plan with square blocks gets."""
    return fit(candidates(arch, kernel, dim, dtype, rule), kernel, block, block)


def block_sparse(arch: str, kernel: str, dim: int, dtype: torch.dtype, rule: bool, block: int = BLOCK) -> Launch:
    """One launch of the block-sparse operator with the tile of the table."""

    def tensor() -> torch.Tensor:
        return torch.zeros(1, LENGTH, HEADS, dim, dtype=dtype)

    row = torch.zeros(1, HEADS, LENGTH)
    if kernel == "prepare":
        return prepare_launch(tensor(), tensor(), row, row, row, row)
    tile = tile_of(arch, kernel, dim, dtype, rule, block)
    problem = _problem(rule, block, inverse=kernel == "dkv")
    if kernel == "forward":
        return forward_launch(tensor(), tensor(), tensor(), tensor(), row, problem, 0.1, tile)
    if kernel == "dq":
        inputs = [tensor() for _ in range(5)]
        return dq_launch(*inputs, None, row, row, problem, 0.1, tile)
    inputs = [tensor() for _ in range(6)]
    return dkv_launch(*inputs, None, row, row, problem, 0.1, tile)


def names(arch: str, full: bool) -> Iterator[tuple[str, int, str, bool, int]]:
    """(kernel, head dim, dtype, with rule, block of the plan). The short list meets every kernel, dim, dtype and rule,
    and the tiles of plans with blocks of 64 where they differ; the full one, every combination."""
    for kernel in ("forward", "dq", "dkv"):
        for dim in (64, 128):
            for dtype in DTYPES:
                for rule in (True, False):
                    # bf16 with the rule and fp16 without are the two corners: same code shape, other conversions.
                    if full or (dtype == "bf16") == rule:
                        yield kernel, dim, dtype, rule, BLOCK
            other = tile_of(arch, kernel, dim, torch.bfloat16, True, 64)
            if other != tile_of(arch, kernel, dim, torch.bfloat16, True, BLOCK):
                yield kernel, dim, "bf16", True, 64
    yield "prepare", 128, "bf16", False, BLOCK
