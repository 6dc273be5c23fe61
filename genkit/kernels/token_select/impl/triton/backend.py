"""Triton backend of per-token selection: launches and memory. Heads are processed in groups so that the buffer stays
small.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.kernels.block_lists import BlockLists, invert, list_mask
from genkit.kernels.channels import Parts as HeadParts
from genkit.kernels.channels import head_parts, one_part, padded
from genkit.kernels.inputs import matrix_unit, triton_refuses

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256

# Float32 partial results kept at once, in bytes. Larger buys nothing: a group of heads already fills the machine.
BUFFER_BYTES = 1 << 28
# Queries whose parts a program merges.
ROWS = 32


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
    """The query tiles of some heads (lines) and queries: ``tile_end`` (lines, C) int32, tiles up to and with a block;
    ``start`` (lines, C + 1) and ``entry`` (lines, ``entries``) the queries of every block. ``room``: pairs that have a
    slot in the buffer, per line."""

    tile_end: Any
    start: Any
    entry: Any
    entries: Any
    room: Any
    blocks: Any
    heads: Any
    first_line: Any
    first_query: Any


class Parts(NamedTuple):
    """The parts of every query: ``held`` (lines, rows) int32, how many, and ``place`` (lines, rows, ``width``) int32,
    their slots."""

    held: Any
    place: Any
    width: Any
    room: Any
    rows: Any
    heads: Any
    first_line: Any
    first_query: Any


def _tiles(forward: Tile, dq: Tile, dkv: Tile) -> dict[str, Tile]:
    return {"forward": forward, "dq": dq, "dkv": dkv}


# By matrix unit and widest head: tiles that spill on none of its targets and in which, but for heads above 128 channels
# on "warps" and "fours", no warp computes scores that another one does (docs/kernels.md).
_TILES: dict[str, dict[int, dict[str, Tile]]] = {
    "warps": {
        64: _tiles(Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        # In two parts.
        80: _tiles(Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        # Channels that a mask cuts off leave no registers for a second stage.
        127: _tiles(Tile(128, 32, 8, 1), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        128: _tiles(Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
        256: _tiles(Tile(32, 32, 4, 1), Tile(32, 64, 8, 1), Tile(32, 32, 8, 1)),
    },
    "fours": {
        64: _tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
        128: _tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2)),
        256: _tiles(Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    },
    "memory": {
        64: _tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        128: _tiles(Tile(64, 32, 4, 2), Tile(64, 32, 8, 1), Tile(32, 64, 8, 1)),
        256: _tiles(Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    },
    "wavefronts": {
        64: _tiles(Tile(128, 64, 4, 2), Tile(128, 32, 4, 2), Tile(32, 128, 4, 1)),
        128: _tiles(Tile(128, 32, 4, 2), Tile(128, 32, 4, 1), Tile(32, 128, 4, 1)),
        256: _tiles(Tile(128, 32, 4, 1), Tile(128, 16, 4, 1), Tile(16, 128, 4, 1)),
    },
}
UNITS = tuple(_TILES)


def tiles_for(dim: int, dtype: torch.dtype, unit: str = "warps") -> dict[str, Tile]:
    """Tile sizes of the kernels for a matrix unit (:func:`~genkit.kernels.inputs.matrix_unit_of`)."""
    if dtype == torch.float32:
        return dict.fromkeys(("forward", "dq", "dkv"), Tile(32, 32, 4, 1))
    return next(tiles for widest, tiles in _TILES[unit].items() if dim <= widest)


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None, or the reason this backend cannot run these inputs."""
    return triton_refuses(q, DTYPES, MAX_DIM)


def parts_of(dim: int) -> HeadParts:
    """Parts of a head here. From 64 + 32 on two parts do not fit the registers of these kernels everywhere, whose
    addresses are per row."""
    return head_parts(dim) if dim <= 80 else one_part(dim)


def _view(x: Tensor) -> View:
    return View(x, x.stride(0), x.stride(1), x.stride(2))


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


class _Run:
    """A range of queries of some heads: which of them visit every block, and the way back. Made without a look at the
    device; how large it is, shapes and the most blocks of a query tell.

    Args:
        lists: of all heads as lines, (1, B * H, N). lines, rows: which part.
        most: blocks a query chose at most. blocks: C. heads: H.
    """

    def __init__(self, lists: BlockLists, lines: slice, rows: slice, most: int, blocks: int, heads: int):
        count, index = lists.count[:, lines, rows], lists.index[:, lines, rows].contiguous()
        self.inverse = invert(BlockLists(count.contiguous(), index), blocks, placed=True)
        self.count, self.blocks = count.contiguous(), blocks
        self.lines, self.rows = lines.stop - lines.start, rows.stop - rows.start
        self.room, self._where = self.rows * most, (heads, lines.start, rows.start)

    def work(self, tile: int) -> tuple[Work, tuple[int, int]]:
        """The query tiles, c pairs of a block making ceil(c / tile) of them, and the grid that has room for all."""
        start, entry, _ = self.inverse
        tile_end = ((start.diff() + (tile - 1)) // tile).cumsum(-1, dtype=torch.int32)
        grid = -(-self.room // tile) + min(self.blocks, self.room), self.lines
        return Work(tile_end, start, entry, entry.shape[-1], self.room, self.blocks, *self._where), grid

    def parts(self) -> Parts:
        """What is merged for every query."""
        place = self.inverse.place
        return Parts(self.count, place, place.shape[-1], self.room, self.rows, *self._where)


def _runs(lists: BlockLists, most: int, blocks: int, dim: int, heads: int) -> Iterator[_Run]:
    """All queries of all heads, in runs whose parts fit the buffer: several heads, or a range of queries of one."""
    lines, n = lists.count.shape[1:]
    fit = max(1, BUFFER_BYTES // (4 * dim * most))  # queries
    together, span = max(1, fit // n), n if fit >= n else -(-fit // ROWS) * ROWS
    for line in range(0, lines, together):
        for row in range(0, n, span):
            here = slice(line, min(line + together, lines)), slice(row, min(row + span, n))
            yield _Run(lists, *here, most, blocks, heads)


def _as_lines(selected: list[Tensor], most: int) -> BlockLists:
    """A selection, a mask or lists, as lists with all heads as lines: (1, B * H, N). None is longer than ``most``, for
    which memory is laid out: a pair can have no place outside of it, whatever the selection says."""
    lists = list_mask(selected[0]) if len(selected) == 1 else BlockLists(*selected)
    return BlockLists(lists.count.flatten(0, 1)[None].clamp(max=most), lists.index.flatten(0, 1)[None])


@lru_cache(maxsize=64)
def _edges(starts: tuple[int, ...], device: torch.device) -> Tensor:
    """Where blocks begin, on the device. Kept, because a copy from the host waits."""
    return torch.tensor(starts, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _key_tiles(starts: tuple[int, ...], keys: int, device: torch.device) -> Tensor:
    """(2, tiles) int32: the block of every key tile, and its first key. Kept as :func:`_edges`."""
    spans = [(c, at) for c, (low, high) in enumerate(pairwise(starts)) for at in range(low, high, keys)]
    return torch.tensor(spans, dtype=torch.int32, device=device).T.contiguous()


def _reduce(kernel: Any, buffers: tuple, run: _Run, rest: tuple, dim: int) -> None:
    kernel[(-(-run.rows // ROWS), run.lines)](
        *buffers, run.parts(), *rest,
        D=dim, DP=padded(dim), TILE=ROWS, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, selected: list[Tensor], most: int, starts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Out in the dtype of q and lse in float32. Extra memory: at most about 256 MB of partial results plus lists of 4
    bytes an entry. Nothing is read back from the device."""
    from genkit.kernels.token_select.impl.triton import kernels

    b, n, h, d = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    if not lse.numel():
        return out, lse
    tile, edges = tiles_for(d, q.dtype, matrix_unit(q.device))["forward"], _edges(tuple(starts), q.device)
    for run in _runs(_as_lines(selected, most), most, len(starts) - 1, d, h):
        work, grid = run.work(tile.queries)
        part_out = torch.empty(run.lines * run.room, d, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(run.lines * run.room, dtype=torch.float32, device=q.device)
        kernels.forward_kernel[grid](
            _view(q), _view(k), _view(v), part_out, part_lse, work, edges, scale, h // k.shape[2],
            D=d, PARTS=parts_of(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
        )  # fmt: skip
        _reduce(kernels.merge_kernel, (part_out, part_lse, _view(out), lse), run, (n,), d)
    return out, lse


def backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, selected: list[Tensor],
    most: int, starts: list[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v; deterministic, and nothing is read back from the device."""
    from genkit.kernels.token_select.impl.triton import kernels

    b, n, h, d = q.shape
    q, k, v, d_out = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, d_out))
    blocks, group = len(starts) - 1, h // k.shape[2]
    delta = (torch.linalg.vecdot(d_out.float(), out.float()).transpose(1, 2) - d_lse).contiguous()
    exponent = torch.where(lse == -torch.inf, torch.inf, lse * 1.4426950408889634).contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not lse.numel():
        return dq, dk.zero_(), dv.zero_()
    lists, tiles = _as_lines(selected, most), tiles_for(d, q.dtype, matrix_unit(q.device))
    edges, tile = _edges(tuple(starts), q.device), tiles["dq"]
    for run in _runs(lists, most, blocks, d, h):
        work, grid = run.work(tile.queries)
        part = torch.empty(run.lines * run.room, d, dtype=torch.float32, device=q.device)
        kernels.dq_kernel[grid](
            _view(q), _view(k), _view(v), _view(d_out), part, delta, exponent, work, edges, scale, n, group,
            D=d, PARTS=parts_of(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
        )  # fmt: skip
        _reduce(kernels.sum_kernel, (part, _view(dq)), run, (), d)
    tile = tiles["dkv"]
    key_tiles, inverse = _key_tiles(tuple(starts), tile.keys, q.device), invert(lists, blocks)
    kernels.dkv_kernel[(key_tiles.shape[1], b * k.shape[2])](
        _view(q), _view(k), _view(v), _view(d_out), _view(dk), _view(dv), delta, exponent, key_tiles[0], key_tiles[1],
        inverse.start, inverse.entry, inverse.entry.shape[-1], edges, scale, n, h, group, blocks,
        D=d, PARTS=parts_of(d), TILE_Q=tile.queries, TILE_K=tile.keys, STAGES=tile.stages, **_options(tile),
    )  # fmt: skip
    return dq, dk, dv
