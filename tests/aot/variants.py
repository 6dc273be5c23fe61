"""The kernel launches whose binaries are checked: the shapes are small, the code is that of any length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from genkit.kernels.block_sparse.block_sizes import Tile, candidates, fit
from genkit.kernels.block_sparse.triton_bias import LowRankTables, QuadraticTables
from genkit.kernels.block_sparse.triton_launch import (
    BiasTables,
    Launch,
    Problem,
    dkv_launch,
    dq_launch,
    forward_launch,
    prepare_launch,
)
from genkit.kernels.block_sparse.triton_launch import view as _view
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
    return _launch(kernel, _problem(rule, block, inverse=kernel == "dkv"), dim, dtype, tile, HEADS)


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


def rare(kernel: str) -> Iterator[tuple[str, Launch]]:
    """Launches of the paths that the main list does not meet: they must compile, whatever registers they take."""
    bias_q, bias_k = (torch.zeros(1, LENGTH, 1, 5) for _ in range(2))
    line = torch.zeros(2, LENGTH)
    low_rank = BiasTables(LowRankTables(_view(bias_q), _view(bias_k)), 1, 5, 16)
    quadratic = QuadraticTables(line, line, torch.zeros(HEADS, 2), 2, torch.zeros(2), line[0], line[0], LENGTH, LENGTH)
    axis, group = _table(2, LENGTH), _table(LENGTH)
    disc = RuleTables(axis, axis, axis, axis, 9, group, group, _table(1, LENGTH), 0, LENGTH, LENGTH)
    windows = RuleTables(axis, axis, axis, None, None, None, None, None, 0, LENGTH, LENGTH)
    small, odd = Tile(32, 32, 4, 1), Tile(64, 32, 4, 2)
    for label, changes, tile, dtype, dim in (
        ("low-rank bias", {"bias": low_rank}, small, torch.bfloat16, 64),
        ("quadratic bias", {"bias": BiasTables(quadratic, 2, 2, 2)}, small, torch.bfloat16, 64),
        ("disc, grouped queries, packed key blocks", {"rule": disc, "axes": 2, "block_k": 16}, odd, torch.float16, 40),
        ("windows only, blocks that tiles do not divide", {"rule": windows, "axes": 2, "block_k": 48, "block_q": 80,
                                                           "even_q": False}, odd, torch.float16, 80),
        ("float32", {}, small, torch.float32, 64),
    ):  # fmt: skip
        problem = replace(_problem(False, BLOCK, kernel == "dkv"), **changes)
        keys = HEADS // 2 if "grouped" in label else HEADS
        # A packed tile makes no sense for a kernel whose programs own key blocks.
        tile = tile._replace(keys=16) if kernel == "dkv" and problem.block_k == 16 else tile
        yield label, _launch(kernel, problem, dim, dtype, tile, keys)


def _launch(kernel: str, problem: Problem, dim: int, dtype: torch.dtype, tile: Tile, key_heads: int) -> Launch:
    q, k = (torch.zeros(1, LENGTH, heads, dim, dtype=dtype) for heads in (HEADS, key_heads))
    row, extra = torch.zeros(1, HEADS, LENGTH), torch.zeros(1, HEADS, LENGTH, 16)
    if kernel == "forward":
        return forward_launch(q, k, k, q, row, problem, 0.1, tile)
    if kernel == "dq":
        return dq_launch(q, k, k, q, q, extra, row, row, problem, 0.1, tile)
    return dkv_launch(q, k, k, q, k, k, extra, row, row, problem, 0.1, tile)
