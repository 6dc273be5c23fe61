"""Launches of the block-sparse kernels: arguments, grid and options in one value that can be run or only compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from genkit.kernels.block_sparse.impl.triton.backward_kernels import dkv_kernel, dq_kernel, prepare_kernel
from genkit.kernels.block_sparse.impl.triton.bias import LowRankTables, QuadraticTables
from genkit.kernels.block_sparse.impl.triton.forward_kernel import forward_kernel
from genkit.kernels.block_sparse.impl.triton.tile import Lists, RuleTables, Tokens, View
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile

# Offsets inside a tile are 32-bit: 256 tokens of this stride still fit.
MAX_TOKEN_STRIDE = 1 << 22


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    ``run()`` executes it (on a GPU, or in the interpreter); ``compile(**options)`` goes through the same argument
    binder and only compiles, which needs no device.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    constants: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)

    def run(self) -> None:
        if all(self.grid):
            # Fusing a multiply with an add is exact enough here, and the default is about to change: say it.
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options, enable_fp_fusion=True)

    def compile(self) -> Any:
        return self.kernel.warmup(
            *self.arguments, grid=self.grid, **self.constants, **self.options, enable_fp_fusion=True
        )


@dataclass(frozen=True)
class BiasTables:
    """A bias as the kernels take it: the record, its kind, its rank or number of axes, and that padded."""

    tables: LowRankTables | QuadraticTables | None = None
    kind: int = 0
    size: int = 1
    width: int = 1


@dataclass(frozen=True)
class Problem:
    """The tables of one call, in execution order of the tokens."""

    block_q: int
    block_k: int
    blocks_q: int
    blocks_k: int
    lists: Lists
    tokens: Tokens
    rule: RuleTables | None
    axes: int
    even_q: bool
    bias: BiasTables = BiasTables()


def view(x: Tensor) -> View:
    """The record of a (B, N, H, D) tensor, D contiguous."""
    return View(x, x.stride(0), x.stride(1), x.stride(2))


def unit_last(x: Tensor) -> Tensor:
    """The tensor itself where the kernels can address it (unit stride in D, 32-bit tile offsets), else a copy."""
    return x if x.stride(-1) == 1 and 0 <= x.stride(1) < MAX_TOKEN_STRIDE else x.contiguous()


def padded(dim: int) -> int:
    """Head dim as the kernels compute it: the next power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def _constants(problem: Problem, dim: int, tile: Tile) -> dict[str, int]:
    return {
        "D": dim,
        "DP": padded(dim),
        "BLOCK_Q": problem.block_q,
        "BLOCK_K": problem.block_k,
        "TILE_Q": tile.queries,
        "TILE_K": tile.keys,
        "AXES": problem.axes,
        "BIAS": problem.bias.kind,
        "SIZE": problem.bias.size,
        "WIDTH": problem.bias.width,
        "STAGES": tile.stages,
    }


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _tiles(blocks: int, block: int, tile: int) -> int:
    return blocks * -(-block // tile)


def forward_launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, problem: Problem, scale: float, tile: Tile
) -> Launch:
    """Writes ``out`` and ``lse``."""
    heads = q.shape[2]
    return Launch(
        forward_kernel,
        (_tiles(problem.blocks_q, problem.block_q, tile.queries), q.shape[0] * heads),
        (view(q), view(k), view(v), view(out), lse, problem.lists, problem.tokens, problem.rule, problem.bias.tables)
        + (scale, heads, heads // k.shape[2]),
        _constants(problem, q.shape[3], tile),
        _options(tile),
    )


def prepare_launch(
    out: Tensor, d_out: Tensor, lse: Tensor, d_lse: Tensor | None, delta: Tensor, exponent: Tensor
) -> Launch:
    """Writes ``delta`` and ``exponent``, which both backward kernels read."""
    n, heads, dim = out.shape[1:]
    rows = 64
    return Launch(
        prepare_kernel,
        (-(-n // rows), out.shape[0] * heads),
        (view(out), view(d_out), lse, d_lse, delta, exponent, n, heads),
        {"D": dim, "DP": padded(dim), "TILE_Q": rows},
        {"num_warps": 4, "num_stages": 1},
    )


def dq_launch(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, dq: Tensor, d_extra: Tensor | None, delta: Tensor,
    exponent: Tensor, problem: Problem, scale: float, tile: Tile,
) -> Launch:  # fmt: skip
    """Writes ``dq``, and with a bias ``d_extra``."""
    heads = q.shape[2]
    return Launch(
        dq_kernel,
        (_tiles(problem.blocks_q, problem.block_q, tile.queries), q.shape[0] * heads),
        (view(q), view(k), view(v), view(d_out), view(dq), d_extra, delta, exponent, problem.lists, problem.tokens)
        + (problem.rule, problem.bias.tables, scale, heads, heads // k.shape[2]),
        _constants(problem, q.shape[3], tile),
        _options(tile),
    )


def dkv_launch(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, dk: Tensor, dv: Tensor, d_extra: Tensor | None, delta: Tensor,
    exponent: Tensor, problem: Problem, scale: float, tile: Tile,
) -> Launch:  # fmt: skip
    """Writes ``dk`` and ``dv``, and with low-rank factors ``d_extra``. ``problem.lists`` are the inverse lists."""
    heads, kv_heads = q.shape[2], k.shape[2]
    even = problem.even_q and problem.block_q % tile.queries == 0
    return Launch(
        dkv_kernel,
        (_tiles(problem.blocks_k, problem.block_k, tile.keys), q.shape[0] * kv_heads),
        (view(q), view(k), view(v), view(d_out), view(dk), view(dv), d_extra, delta, exponent, problem.lists)
        + (problem.tokens, problem.rule, problem.bias.tables, scale, heads, heads // kv_heads),
        _constants(problem, q.shape[3], tile) | {"EVEN_Q": even},
        _options(tile),
    )
