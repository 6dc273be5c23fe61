"""Lists by Triton kernels: launches and memory. Nothing is read back from the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from genkit.kernels.block_lists.lists import WORD, heads_together
from genkit.kernels.inputs import MAX_PROGRAMS

#: Entries of a table that a program works on at once: rows times columns.
ENTRIES = 512
LEAST_COLUMNS = 16
#: Entries where a program holds several rows, and where it also adds masses up: what spills on no target.
SHORT, SHORT_MASS = 256, 128


def why_not(table: Tensor) -> str | None:
    """None, or the reason this backend cannot work on (B, H, M, C) tables like this one."""
    try:
        import triton
    except ImportError:
        return "the triton package is not installed (pip install triton)"
    if (heads := table.shape[0] * table.shape[1]) > MAX_PROGRAMS:
        return f"batch * heads = {heads} exceeds the {MAX_PROGRAMS} programs a grid axis may have"
    if table.device.type != "cuda" and not triton.knobs.runtime.interpret:
        return f"the tables are on {table.device}; it needs a CUDA or HIP device, or TRITON_INTERPRET=1 for tests"
    return None


def shape_of(columns: int, short: int = SHORT) -> dict[str, int]:
    """Rows and columns of a program's tile. Rows of up to ``ENTRIES`` columns are held whole, several at once when they
    are short; longer ones are walked."""
    tile = min(ENTRIES, max(LEAST_COLUMNS, 1 << max(0, columns - 1).bit_length()))
    rows = max(1, short // tile)
    return {"ROWS": rows, "TILE": tile, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


def kernel(name: str) -> Any:
    """A kernel by its name. Imported when first run, so that this module works without Triton."""
    from genkit.kernels.block_lists.impl.triton import kernels

    return getattr(kernels, f"{name}_kernel")


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(x) if x.device.type == "cuda" else nullcontext()


def select_arguments(
    scores: Tensor, first: Tensor, last: Tensor, columns: Tensor | None, mass: float, floor: int, cap: int,
    count: Tensor, index: Tensor,
) -> tuple[tuple, dict[str, Any]]:  # fmt: skip
    """Arguments and options of the launch; the same for running and for compiling ahead of time."""
    _, heads, rows, wide = scores.shape
    held = None if columns is None else columns.view(torch.uint8)
    given = (scores, *scores.stride()[:3], first, last, held, count, index)
    numbers = (rows, wide, index.shape[-1], heads, max(mass, 0.0), floor, cap)
    return (*given, *numbers), {"MASS": mass >= 0, **shape_of(wide, SHORT_MASS if mass >= 0 else SHORT)}


def select(
    scores: Tensor, first: Tensor, last: Tensor, columns: Tensor | None, mass: float, floor: int, cap: int, width: int
) -> tuple[Tensor, Tensor]:
    """Counts and lists of the chosen columns; arguments as in the operator."""
    scores = scores.float()
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    count, index = _lists(scores, width)
    first, last = (x.contiguous() for x in (first, last))
    columns = None if columns is None else columns.contiguous()
    given, options = select_arguments(scores, first, last, columns, mass, floor, cap, count, index)
    _run(kernel("select"), scores, given, options)
    return count, index


def mask_arguments(mask: Tensor, count: Tensor, index: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Arguments and options of the launch; the same for running and for compiling ahead of time."""
    _, heads, rows, wide = mask.shape
    given = (mask.view(torch.uint8), *mask.stride(), count, index, rows, wide, index.shape[-1], heads)
    return given, shape_of(wide)


def list_mask(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Counts and lists of the True columns."""
    count, index = _lists(mask, width)
    given, options = mask_arguments(mask, count, index)
    _run(kernel("mask"), mask, given, options)
    return count, index


def _lists(table: Tensor, width: int) -> tuple[Tensor, Tensor]:
    count = torch.empty(table.shape[:-1], dtype=torch.int32, device=table.device)
    return count, torch.empty((*table.shape[:-1], width), dtype=torch.int32, device=table.device)


def _run(function: Any, table: Tensor, given: tuple, options: dict[str, Any]) -> None:
    batch, heads, rows, _ = table.shape
    if batch * heads * rows:
        with _on(table):
            function[(-(-rows // options["ROWS"]), batch * heads)](*given, **options)


class Turn:
    """The tables that lists of some heads are turned around through."""

    def __init__(self, heads: int, rows: int, columns: int, device: torch.device):
        chunks = -(-rows // WORD)
        self.rows, self.columns, self.chunks = rows, columns, chunks
        self.words = torch.zeros(heads, chunks, columns, dtype=torch.int32, device=device)
        self.before = torch.empty_like(self.words)
        self.total = torch.empty(heads, columns, dtype=torch.int32, device=device)


def invert(
    counts: list[Tensor], indices: list[Tensor], columns: int, placed: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Starts, entries and places. Which rows visit a column is a bit each in words of 32 rows, so that a row's place
    among them is the number of bits before it: no sort, and nothing depends on who comes first."""
    batch, heads, rows, _ = indices[0].shape
    device = indices[0].device
    every = batch * heads
    flat = [
        (n.contiguous().view(every, rows), x.contiguous().view(every, rows, -1))
        for n, x in zip(counts, indices, strict=True)
    ]
    width = sum(x.shape[-1] for _, x in flat)
    start = torch.zeros(every, columns + 1, dtype=torch.int32, device=device)
    entry = torch.zeros(every, rows * width, dtype=torch.int32, device=device)
    place = torch.zeros(indices[0].shape if placed else (0,), dtype=torch.int32, device=device)
    together = heads_together(rows, columns)
    for low in range(0, every if rows and columns else 0, together):
        here = slice(low, min(every, low + together))
        with _on(entry):
            _turn(
                [(n[here], x[here]) for n, x in flat],
                start[here],
                entry[here],
                place.view(every, rows, width)[here] if placed else None,
                columns,
            )
    return start.view(batch, heads, -1), entry.view(batch, heads, -1), place


def turn_launches(
    lists: list[tuple[Tensor, Tensor]], start: Tensor, entry: Tensor, place: Tensor | None, turn: Turn
) -> list[tuple[str, tuple[int, int], tuple, dict[str, int]]]:
    """(name, grid, arguments, options) of the launches that turn lists around; between the second and the third,
    ``start`` is summed up."""
    heads, rows = lists[0][0].shape
    options = {"TILE": ENTRIES, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    found: list[tuple[str, tuple[int, int], tuple, dict[str, int]]] = []
    grids = [(-(-rows * x.shape[-1] // ENTRIES), heads) for _, x in lists]
    sizes = rows, turn.columns, turn.chunks
    for grid, (n, x) in zip(grids, lists, strict=True):
        found.append(("mark", grid, (n, x, turn.words, x.shape[-1], *sizes), options))
    count = (turn.words, turn.before, turn.total, turn.columns, turn.chunks)
    found.append(("count", (-(-turn.columns // 128), heads), count, options | {"TILE": 128}))
    for grid, (n, x) in zip(grids, lists, strict=True):
        given = (n, x, turn.words, turn.before, start, entry, place, x.shape[-1], entry.shape[-1], *sizes)
        found.append(("fill", grid, given, options))
    return found


def _turn(
    lists: list[tuple[Tensor, Tensor]], start: Tensor, entry: Tensor, place: Tensor | None, columns: int
) -> None:  # fmt: skip
    turn = Turn(len(entry), lists[0][0].shape[1], columns, entry.device)
    for name, grid, given, options in turn_launches(lists, start, entry, place, turn):
        if name == "fill" and given[0] is lists[0][0]:
            start[:, 1:] = turn.total.cumsum(-1, dtype=torch.int32)
        kernel(name)[grid](*given, **options)
