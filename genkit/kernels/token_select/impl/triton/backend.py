"""Triton backend of per-token selection: launches and memory. Heads are processed in groups so that the buffer stays
small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.kernels.inputs import triton_refuses, warps_work_in_fours
from genkit.kernels.token_select.pairs import Pairs

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256

# Float32 partial results kept at once, in bytes. Larger buys nothing: a group of heads already fills the machine.
BUFFER_BYTES = 1 << 28


class Tile(NamedTuple):
    """Rows of queries and keys a program works on, and how it is launched."""

    queries: int
    keys: int
    warps: int
    stages: int


class View(NamedTuple):
    """A (B, N, H, D) tensor as a kernel takes it: its address and strides; the last axis is dense."""

    ptr: Any
    batch: Any
    token: Any
    head: Any


class Work(NamedTuple):
    """Query tiles of a group of heads: number of (batch, head, block), first pair; where each block's pairs end."""

    segment: Any
    start: Any
    block_start: Any


def tiles_for(dim: int, dtype: torch.dtype, fours: bool = False) -> dict[str, Tile]:
    """Tile sizes that spill on no architecture tried, see docs/kernels.md. ``fours``: for targets where four warps
    multiply together (:func:`~genkit.kernels.inputs.warps_work_in_fours`)."""
    if dtype == torch.float32:
        small = Tile(32, 32, 4, 1)
        return {"forward": small, "dq": small, "dkv": small}
    if fours and dim <= 128:
        queries = 64 if dim <= 64 else 32
        return {"forward": Tile(64, 64, 4, 2), "dq": Tile(64, 64, 4, 2), "dkv": Tile(queries, 64, 4, 2)}
    if dim <= 64:
        return {"forward": Tile(64, 64, 4, 2), "dq": Tile(64, 32, 4, 2), "dkv": Tile(32, 64, 4, 2)}
    if dim <= 128:
        return {"forward": Tile(64, 32, 4, 2), "dq": Tile(64, 32, 8, 1), "dkv": Tile(32, 64, 8, 1)}
    return {"forward": Tile(32, 32, 4, 1), "dq": Tile(32, 32, 8, 1), "dkv": Tile(32, 32, 8, 1)}


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    return triton_refuses(q, DTYPES, MAX_DIM)


def _view(x: Tensor) -> View:
    return View(x, x.stride(0), x.stride(1), x.stride(2))


def _padded(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


class _Groups:
    """Contiguous runs of (batch, head) whose pairs fit the buffer, and the query tiles of each."""

    def __init__(self, pairs: Pairs, rows: int, blocks: int, dim: int, limit: int = BUFFER_BYTES):
        self.pairs, self.blocks = pairs, blocks
        self.counts = pairs.block_start.diff()
        ends = pairs.block_start[::blocks].tolist()
        most = max(1, limit // (4 * _padded(dim)))
        self.runs: list[tuple[int, int, int, int]] = []  # first and last (batch, head), first and last pair
        first = 0
        for number in range(1, rows + 1):
            if number == rows or ends[number + 1] - ends[first] > most:
                self.runs.append((first, number, ends[first], ends[number]))
                first = number
        self.largest = max(run[3] - run[2] for run in self.runs)

    def work(self, run: tuple[int, int, int, int], tile: int) -> tuple[Work, int]:
        """The query tiles of one run: each segment of c pairs makes ceil(c / tile) of them."""
        low, high = run[0] * self.blocks, run[1] * self.blocks
        per = (self.counts[low:high] + tile - 1) // tile
        local = torch.repeat_interleave(per)
        offset = per.cumsum(0) - per
        segment = local + low
        within = torch.arange(len(local), device=local.device) - offset[local]
        start = self.pairs.block_start[segment] + within * tile
        return Work(segment.to(torch.int32), start, self.pairs.block_start), len(local)


def _starts(starts: list[int], device: torch.device) -> Tensor:
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _reduce(kernel: Callable, buffers: tuple, pairs: Pairs, run: tuple, n: int, heads: int, dim: int) -> None:
    rows = 32
    grid = (-(-n // rows), run[1] - run[0])
    kernel[grid](
        *buffers, pairs.row_start, pairs.row_pair, run[2], run[0], n, heads,
        D=dim, DP=_padded(dim), TILE=rows, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, starts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Out in the dtype of q and lse in float32. Extra memory: at most about 256 MB of partial results plus the pair
    lists.
    """
    from genkit.kernels.token_select.impl.triton import kernels

    b, n, h, d = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    pairs = Pairs.of(selected)
    groups = _Groups(pairs, b * h, selected.shape[3], d)
    tile = tiles_for(d, q.dtype, warps_work_in_fours(q.device))["forward"]
    part_out = torch.empty(max(1, groups.largest), _padded(d), dtype=torch.float32, device=q.device)
    part_lse = torch.empty(max(1, groups.largest), dtype=torch.float32, device=q.device)
    edges = _starts(starts, q.device)
    for run in groups.runs:
        work, count = groups.work(run, tile.queries)
        if count:
            kernels.forward_kernel[(count,)](
                _view(q), _view(k), _view(v), part_out, part_lse, work, edges, pairs.query, run[2], scale, h,
                h // k.shape[2], selected.shape[3],
                D=d, DP=_padded(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
            )  # fmt: skip
        _reduce(kernels.merge_kernel, (part_out, part_lse, _view(out), lse), pairs, run, n, h, d)
    return out, lse


def backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, selected: Tensor,
    starts: list[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v; deterministic."""
    from genkit.kernels.token_select.impl.triton import kernels

    b, n, h, d = q.shape
    q, k, v, d_out = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, d_out))
    blocks = selected.shape[3]
    delta = (torch.linalg.vecdot(d_out.float(), out.float()).transpose(1, 2) - d_lse).contiguous()
    exponent = torch.where(lse == -torch.inf, torch.inf, lse * 1.4426950408889634).contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    pairs = Pairs.of(selected)
    groups = _Groups(pairs, b * h, blocks, d)
    tiles = tiles_for(d, q.dtype, warps_work_in_fours(q.device))
    tile, group = tiles["dq"], h // k.shape[2]
    part = torch.empty(max(1, groups.largest), _padded(d), dtype=torch.float32, device=q.device)
    edges = _starts(starts, q.device)
    for run in groups.runs:
        work, count = groups.work(run, tile.queries)
        if count:
            kernels.dq_kernel[(count,)](
                _view(q), _view(k), _view(v), _view(d_out), part, delta, exponent, work, edges, pairs.query, run[2],
                scale, n, h, group, blocks,
                D=d, DP=_padded(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
            )  # fmt: skip
        _reduce(kernels.sum_kernel, (part, _view(dq)), pairs, run, n, h, d)
    tile = tiles["dkv"]
    spans = [(c, at) for c in range(blocks) for at in range(starts[c], starts[c + 1], tile.keys)]
    key_block, key_start = torch.tensor(spans, dtype=torch.int32, device=q.device).T.contiguous()
    kernels.dkv_kernel[(len(spans), b * k.shape[2])](
        _view(q), _view(k), _view(v), _view(d_out), _view(dk), _view(dv), delta, exponent, key_block, key_start,
        pairs.block_start, edges, pairs.query, scale, n, h, group, blocks,
        D=d, DP=_padded(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
    )  # fmt: skip
    return dq, dk, dv
