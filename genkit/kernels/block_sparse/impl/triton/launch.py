"""Launches of the block-sparse kernels: arguments, grid and options in one value that can be run or only compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from genkit.kernels.block_sparse.impl.triton.backward_kernels import dkv_kernel, dq_kernel, prepare_kernel
from genkit.kernels.block_sparse.impl.triton.bias import LOW_RANK, LowRankTables, QuadraticTables
from genkit.kernels.block_sparse.impl.triton.forward_kernel import forward_kernel
from genkit.kernels.block_sparse.impl.triton.tile import (
    BoxTables,
    Call,
    Lists,
    RuleTables,
    Shape,
    Steps,
    Tables,
    Tokens,
    View,
)
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile, apart
from genkit.kernels.channels import Parts, one_part

# Offsets inside a tile are 32-bit: 256 tokens of this stride still fit.
MAX_TOKEN_STRIDE = 1 << 22
# A stride that tensor descriptors take for 16-bit elements.
UNIT = 8


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

    @property
    def light(self) -> bool:
        """Whether it is one number per query times one per key, which costs little more than no bias."""
        return self.kind == LOW_RANK.value and self.size == 1


@dataclass(frozen=True)
class Problem:
    """The tables of one call, in block order of the tokens.

    ``kind`` is what decides about partial blocks (NO_MASK, RULE, BITS or BOX), ``mask`` its tables, ``axes`` those of a
    mask specification read axis by axis.
    """

    block_q: int
    block_k: int
    blocks_q: int
    blocks_k: int
    lists: Lists
    tokens: Tokens
    kind: int
    mask: RuleTables | BoxTables | Tensor | None
    axes: int
    bias: BiasTables = BiasTables()

    @property
    def even_q(self) -> bool:
        """Whether there is a token, if only padding, for every slot of every query block. What is added up for padding
        is 0: see :func:`prepare_kernel`."""
        return self.tokens.n_q % self.block_q == 0

    @property
    def even_k(self) -> bool:
        """Whether there is a token for every slot of every key block."""
        return self.tokens.n_k % self.block_k == 0

    @property
    def tables(self) -> Tables:
        """What a kernel reads of it."""
        return Tables(self.lists, self.tokens, self.mask, self.bias.tables)


class Rows(NamedTuple):
    """Per query, (B, H, length) float32: what is subtracted from dO V^T, and the base-2 log-sum-exp. ``length`` counts
    the slots of all query blocks, so that a kernel need not ask which of a block's queries exist."""

    delta: Tensor
    exponent: Tensor
    length: int

    @classmethod
    def empty(cls, q: Tensor, problem: Problem) -> Rows:
        """For the queries of a problem, yet to be written."""
        length = problem.blocks_q * problem.block_q
        shape = q.shape[0], q.shape[2], length
        delta, exponent = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
        return cls(delta, exponent, length)


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call as kernels can address them; ``d_out`` only in the backward pass, ``steps`` only where
    queries and keys are int8."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor | None = None
    steps: Steps | None = None
    parts: Parts = ()

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor | None = None, *, parts: Parts) -> Inputs:
        """Copies those that no kernel can address. ``parts``: how kernels take their heads apart."""
        d_out = None if d_out is None else unit_last(d_out)
        return cls(unit_last(q), unit_last(k), unit_last(v), d_out, parts=parts)

    @property
    def reachable(self) -> bool:
        """Whether the copy engine can address all of them."""
        return all(_reachable(x) for x in (self.q, self.k, self.v, self.d_out) if x is not None)

    @property
    def aligned(self) -> bool:
        """Whether Triton knows that rows of keys and values begin at multiples of 16 bytes, so that copies of them can
        be asynchronous: it asks whether strides are multiples of 16 elements."""
        return all(n % 16 == 0 for x in (self.k, self.v) for n in x.stride()[:-1]) and not (
            self.k.data_ptr() % 16 or self.v.data_ptr() % 16
        )

    def views(self) -> tuple[View, ...]:
        """Records of all of them."""
        return tuple(view(x) for x in (self.q, self.k, self.v, self.d_out) if x is not None)

    def call(self, scale: float) -> Call:
        """The numbers of the call."""
        return Call(scale, self.q.shape[2], self.q.shape[2] // self.k.shape[2], self.steps)


def view(x: Tensor) -> View:
    """The record of a (B, N, H, D) tensor, D contiguous."""
    return View(x, x.stride(0), x.stride(1), x.stride(2))


def unit_last(x: Tensor) -> Tensor:
    """The tensor itself where the kernels can address it (unit stride in D, 32-bit tile offsets), else a copy."""
    return x if x.stride(-1) == 1 and 0 <= x.stride(1) < MAX_TOKEN_STRIDE else x.contiguous()


def _shape(problem: Problem, inputs: Inputs, tile: Tile, scale: float) -> Shape:
    dim = inputs.q.shape[3]
    return Shape(
        dim,
        inputs.parts,
        problem.block_q,
        problem.block_k,
        tile.queries,
        tile.keys,
        problem.kind,
        problem.axes,
        problem.bias.kind,
        problem.bias.size,
        problem.bias.width,
        tile.stages,
        tile.specialised,
        problem.even_q and problem.block_q % tile.queries == 0,
        problem.even_k,
        scale > 0,
        inputs.q.shape[2] != inputs.k.shape[2],
        apart(dim),
        inputs.q.dtype == torch.float32,
    )


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _bulk(tensors: tuple[Tensor | None, ...], rows: int, block: int, parts: Parts, wanted: bool) -> tuple[Any, ...]:
    """Descriptors of the parts of (B, N, H, D) tensors for copies of ``rows`` tokens, or None for each: where the copy
    engine is not wanted, or a block does not hold whole tiles."""
    if not wanted or block % rows:
        return (None,) * len(tensors)
    boxes = [[1, rows, 1, width] for _, width in parts]
    return tuple(tuple(_descriptor(x, box) for box in boxes) for x in tensors if x is not None)


def _descriptor(x: Tensor, box: list[int]) -> TensorDescriptor:
    # the stride of an axis of one entry is never used, but must be a legal one
    strides = [stride if n > 1 or stride == 1 else UNIT for n, stride in zip(x.shape, x.stride(), strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides[:-1], 1], box)


def _reachable(x: Tensor) -> bool:
    """Whether the copy engine can address a tensor: 16-bit, at multiples of 16 bytes on every axis, none broadcast."""
    steps = [stride for n, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    aligned = all(stride > 0 and stride % (16 // x.element_size()) == 0 for stride in steps)
    return x.element_size() == 2 and x.numel() > 0 and x.data_ptr() % 16 == 0 and x.stride(-1) == 1 and aligned


def _tiles(blocks: int, block: int, tile: int) -> int:
    return blocks * -(-block // tile)


def forward_launch(
    inputs: Inputs, out: Tensor, lse: Tensor, problem: Problem, scale: float, tile: Tile, bulk: bool = False
) -> Launch:
    """Writes ``out`` and ``lse``. ``bulk``: whether an engine of the target copies tiles; the inputs must be
    reachable."""
    batch, _, heads, _ = inputs.q.shape
    return Launch(
        forward_kernel,
        (_tiles(problem.blocks_q, problem.block_q, tile.queries), batch * heads),
        (
            inputs.views()[:3],
            *_bulk((inputs.k, inputs.v), tile.keys, problem.block_k, inputs.parts, bulk),
            view(out),
            lse,
            problem.tables,
            inputs.call(scale),
        ),
        {"SHAPE": _shape(problem, inputs, tile, scale)},
        _options(tile),
    )


def prepare_launch(out: Tensor, d_out: Tensor, lse: Tensor, d_lse: Tensor | None, rows: Rows) -> Launch:
    """Writes ``rows``, which both backward kernels read."""
    n, heads, dim = out.shape[1:]
    length = 64
    return Launch(
        prepare_kernel,
        (-(-rows.length // length), out.shape[0] * heads),
        (view(out), view(d_out), lse, d_lse, rows, n, heads),
        {"D": dim, "PARTS": one_part(dim), "TILE_Q": length},
        {"num_warps": 4, "num_stages": 1},
    )


def dq_launch(
    inputs: Inputs, rows: Rows, dq: Tensor, d_extra: Tensor | None, problem: Problem, scale: float, tile: Tile,
    bulk: bool = False,
) -> Launch:  # fmt: skip
    """Writes ``dq``, and with a bias ``d_extra``. ``bulk`` as in :func:`forward_launch`."""
    batch, _, heads, _ = inputs.q.shape
    return Launch(
        dq_kernel,
        (_tiles(problem.blocks_q, problem.block_q, tile.queries), batch * heads),
        (
            inputs.views(),
            *_bulk((inputs.k, inputs.v), tile.keys, problem.block_k, inputs.parts, bulk),
            rows,
            view(dq),
            d_extra,
            problem.tables,
            inputs.call(scale),
        ),
        {"SHAPE": _shape(problem, inputs, tile, scale)},
        _options(tile),
    )


def dkv_launch(
    inputs: Inputs, rows: Rows, dk: Tensor, dv: Tensor, d_extra: Tensor | None, problem: Problem, scale: float,
    tile: Tile, bulk: bool = False,
) -> Launch:  # fmt: skip
    """Writes ``dk`` and ``dv``, and with low-rank factors ``d_extra``; ``dk`` and ``dv`` then have an entry per query
    head, to be added up over those that share a key head. ``problem`` holds the inverse lists. ``bulk`` as in
    :func:`forward_launch`."""
    dim = inputs.q.shape[3]
    return Launch(
        dkv_kernel,
        (
            _tiles(problem.blocks_k, problem.block_k, tile.keys),
            dk.shape[0] * dk.shape[2],
            2 if apart(dim) else 1,
        ),
        (
            inputs.views(),
            *_bulk((inputs.q, inputs.d_out), tile.queries, problem.block_q, inputs.parts, bulk),
            rows,
            view(dk),
            view(dv),
            d_extra,
            problem.tables,
            inputs.call(scale),
        ),
        {"SHAPE": _shape(problem, inputs, tile, scale)},
        _options(tile),
    )
