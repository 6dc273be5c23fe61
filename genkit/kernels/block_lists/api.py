"""The public entry: from scores under a budget, or from a mask, to lists; and from lists to those of the other side.

Nothing here reads a value back from a device. Widths follow from shapes and budgets, counts stay where the lists are,
and no index can lie outside by construction: a row's list is written from the positions of its own scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels import discovery
from genkit.kernels.block_lists import impl
from genkit.kernels.block_lists.budget import Budget, Kept
from genkit.kernels.block_lists.lists import SCORE_BYTES, BlockLists, Inverse, rounded

_BACKENDS = discovery.Backends(impl, "block_lists")
_MOST_ENTRIES = 1 << 31


def backends() -> tuple[str, ...]:
    """Names of the backends, in the order ``auto`` tries them."""
    return _BACKENDS.names()


def why_not(backend: str, table: Tensor) -> str | None:
    """None when ``backend`` can work on tables (B, H, M, C) like this one, otherwise the reason why not."""
    return _BACKENDS.why_not(backend, table)


@torch.no_grad()
def select(scores: Tensor, budget: Budget, kept: Kept, *, backend: str = "auto") -> BlockLists:
    """The best blocks of every row within a budget, as lists.

    Args:
        scores: (B|1, H|1, M, C), larger means keep; compared as float32. ``-inf`` = forbidden, NaN = as large as can
            be (so that it shows in the output), ties go to the lower index. No gradient flows through them.
        budget: how many.
        kept: blocks that are taken first whatever their scores, on the device of the scores. They count towards the
            budget and may exceed it.
        backend: ``"auto"``, or one of :func:`backends`, which then runs or raises.

    Returns:
        Lists as wide as the most that the budget and ``kept`` allow, rounded up. A row of which everything is forbidden
        is empty, unless ``kept`` gives it a block.

    Cost: 32 passes over a row in cache (64 for a mass), no sort, no mask; nothing waits for the device.

    Raises:
        UsageError: shapes or devices that do not fit.
    """
    _check_scores(scores, kept, scores.shape[-2] if scores.dim() == 4 else 0)
    floor, cap = budget.bounds(scores.shape[-1])
    # as a kernel takes a number
    mass = -1.0 if budget.mass is None else float(np.float32(budget.mass))
    width = rounded(max(cap, kept.most))
    found = torch.ops.genkit.select_lists(scores, kept.first, kept.last, kept.columns, mass, floor, cap, width, backend)
    return BlockLists(*found)


@torch.no_grad()
def select_rows(
    scores: Callable[[int, int], Tensor],
    rows: int,
    budget: Budget,
    kept: Kept,
    *,
    bytes_per_row: int,
    backend: str = "auto",
) -> BlockLists:
    """:func:`select` for grids whose scores do not fit the memory at once.

    Args:
        scores: gives the scores (B|1, H|1, last - first, C) of a range of rows.
        rows: number of rows M.
        bytes_per_row: of the scores, all heads together; how many rows are asked for at once follows from it.
        Others as in :func:`select`.
    """
    if rows < 1:
        raise UsageError(f"select_rows needs at least one row, got {rows}")
    step = max(1, SCORE_BYTES // max(1, bytes_per_row))
    whole: BlockLists | None = None
    for first in range(0, rows, step):
        last = min(rows, first + step)
        part = select(scores(first, last), budget, kept.rows(first, last), backend=backend)
        if whole is None:
            shape = (*part.count.shape[:2], rows)
            whole = BlockLists(part.count.new_empty(shape), part.index.new_empty((*shape, part.index.shape[-1])))
        whole.count[:, :, first:last], whole.index[:, :, first:last] = part
    assert whole is not None
    return whole


def list_mask(mask: Tensor, *, backend: str = "auto") -> BlockLists:
    """The True columns of every row of a bool (B|1, H|1, M, C), in lists wide enough for all of them."""
    if mask.dim() != 4 or mask.dtype != torch.bool:
        raise UsageError(f"list_mask needs bool (B|1, H|1, M, C), got {mask.dtype} {tuple(mask.shape)}")
    return BlockLists(*torch.ops.genkit.mask_lists(mask, rounded(mask.shape[-1]), backend))


def invert(
    lists: BlockLists | Sequence[BlockLists], columns: int, *, placed: bool = False, backend: str = "auto"
) -> Inverse:
    """Who visits every column, from what every row visits. Bit for bit the same every time.

    Args:
        lists: of one shape but for their width; several are taken together, and none may share an entry with another.
        columns: number of columns C; every entry must lie below it.
        placed: also tell where each entry went (of one lists only).
        backend: as in :func:`select`.

    Raises:
        UsageError: lists that do not fit together, or with more than 2**31 entries to a head.
    """
    lists = [lists] if isinstance(lists, BlockLists) else list(lists)
    shape = lists[0].count.shape
    if any(one.count.shape != shape or one.index.shape[:-1] != shape for one in lists):
        raise UsageError(f"invert: lists must agree in (B, H, M), got {[tuple(one.index.shape) for one in lists]}")
    if placed and len(lists) > 1:
        raise UsageError(f"invert: places are told of one table of lists, got {len(lists)}")
    entries = shape[-1] * sum(one.index.shape[-1] for one in lists)
    if entries >= _MOST_ENTRIES:
        raise UsageError(f"invert: {entries} entries for a head, their places must stay below {_MOST_ENTRIES}")
    counts, indices = [one.count for one in lists], [one.index for one in lists]
    return Inverse(*torch.ops.genkit.invert_lists(counts, indices, columns, placed, backend))


def _check_scores(scores: Tensor, kept: Kept, rows: int) -> None:
    if scores.dim() != 4 or not scores.is_floating_point():
        raise UsageError(
            f"select needs scores (B|1, H|1, M, C) in floating point, got {scores.dtype} {tuple(scores.shape)}"
        )
    if kept.first.shape[0] != rows or kept.blocks != scores.shape[-1]:
        raise UsageError(
            f"select: {rows} rows of {scores.shape[-1]} blocks, but the kept blocks are for {kept.first.shape[0]} rows "
            f"of {kept.blocks}"
        )
    if kept.first.device != scores.device:
        raise UsageError(f"select: the scores are on {scores.device}, the kept blocks on {kept.first.device}; use to()")


def _choose(backend: str, table: Tensor) -> ModuleType:
    return _BACKENDS[_BACKENDS.choose(backend, table)]


@torch.library.custom_op("genkit::select_lists", mutates_args=())
def _select(
    scores: Tensor, first: Tensor, last: Tensor, columns: Tensor | None, mass: float, floor: int, cap: int, width: int,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _choose(backend, scores).select(scores, first, last, columns, mass, floor, cap, width)


@_select.register_fake
def _(scores, first, last, columns, mass, floor, cap, width, backend):
    return _empty_lists(scores, width)


@torch.library.custom_op("genkit::mask_lists", mutates_args=())
def _list(mask: Tensor, width: int, backend: str) -> tuple[Tensor, Tensor]:
    return _choose(backend, mask).list_mask(mask, width)


@_list.register_fake
def _(mask, width, backend):
    return _empty_lists(mask, width)


@torch.library.custom_op("genkit::invert_lists", mutates_args=())
def _invert(
    counts: list[Tensor], indices: list[Tensor], columns: int, placed: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _choose(backend, indices[0]).invert(counts, indices, columns, placed)


@_invert.register_fake
def _(counts, indices, columns, placed, backend):
    batch, heads, rows, _ = indices[0].shape
    start = indices[0].new_empty((batch, heads, columns + 1), dtype=torch.int32)
    entry = indices[0].new_empty((batch, heads, rows * sum(x.shape[-1] for x in indices)), dtype=torch.int32)
    return start, entry, indices[0].new_empty(indices[0].shape if placed else (0,), dtype=torch.int32)


def _empty_lists(table: Tensor, width: int) -> tuple[Tensor, Tensor]:
    count = table.new_empty(table.shape[:-1], dtype=torch.int32)
    return count, table.new_empty((*table.shape[:-1], width), dtype=torch.int32)
