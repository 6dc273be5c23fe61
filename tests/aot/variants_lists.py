"""The launches that make and turn lists, as they are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from genkit.kernels.block_lists.impl.triton import backend, kernels

HEADS, ROWS = 2, 64
#: Columns of rows that are held whole, several at once, and of rows that are walked.
SHORT, LONG = 72, 5000


def lists() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, function that compiles the kernel as its launch would) of every kernel."""
    for columns, mass in ((SHORT, -1.0), (SHORT, 0.5), (LONG, -1.0), (LONG, 0.5)):
        told = f"lists select{' by mass' * (mass >= 0)}, {columns} columns"
        yield told, select(columns, mass)
    count, index = _lists(32)
    mask = torch.zeros(1, HEADS, ROWS, LONG, dtype=torch.bool)
    given, options = backend.mask_arguments(mask, count, index)
    yield f"lists of a mask, {LONG} columns", _compiled(kernels.mask_kernel, given, options)
    flat = count.view(HEADS, ROWS), index.view(HEADS, ROWS, -1)
    turn = backend.Turn(HEADS, ROWS, LONG, torch.device("cpu"))
    start, entry = _table(HEADS, LONG + 1), _table(HEADS, ROWS * 32)
    for name, _, given, options in backend.turn_launches([flat], start, entry, flat[1], turn):
        yield f"lists {name}", _compiled(getattr(kernels, f"{name}_kernel"), given, options)


def select(columns: int, mass: float, width: int = 32) -> Callable[[], object]:
    """The launch of the selection in rows of ``columns`` scores, into lists of ``width``."""
    scores, held = torch.zeros(1, HEADS, ROWS, columns), torch.zeros(columns, dtype=torch.bool)
    count, index = _lists(width)
    line = _table(ROWS)
    given, options = backend.select_arguments(scores, line, line, held, mass, 3, 20, count, index)
    return _compiled(kernels.select_kernel, given, options)


def _compiled(kernel, given: tuple, options: dict) -> Callable[[], object]:
    return lambda: kernel.warmup(*given, grid=(1,), **options)


def _lists(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _table(1, HEADS, ROWS), _table(1, HEADS, ROWS, width)


def _table(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)
