"""What may be kept of a row of scores: how many blocks, and which ones in any case."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor

from genkit.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """How many blocks of a row are kept. All of it is known before any score: the lists' width follows from it.

    Args:
        keep: blocks per row (a whole number) or a share of them in (0, 1], at least one: top-k. Give this or ``mass``.
        mass: share in (0, 1] of a row's mass to reach: top-p. Scores then are masses >= 0 (what is below counts as 0).
        floor: with ``mass``, blocks per row at least.
        cap: with ``mass``, blocks per row at most, a number or a share; it decides how wide the lists are.
    """

    keep: int | float | None = None
    mass: float | None = None
    floor: int = 1
    cap: int | float = 1.0

    def __post_init__(self):
        if (self.keep is None) == (self.mass is None):
            raise UsageError("budget: give either keep= (top-k) or mass= (top-p), not both or neither")
        for name in ("keep", "cap"):
            value = getattr(self, name)
            if value is not None:
                _check_share(name, value)
        if self.mass is not None and not 0 < self.mass <= 1:
            raise UsageError(f"budget: mass must lie in (0, 1], got {self.mass!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 1:
            raise UsageError(f"budget: floor must be a whole number >= 1, got {self.floor!r}")

    def bounds(self, columns: int) -> tuple[int, int]:
        """Fewest and most blocks of a row of ``columns``, blocks that are kept in any case aside."""
        if self.keep is not None:
            count = _blocks(self.keep, columns)
            return count, count
        floor = min(self.floor, columns)
        return floor, max(floor, _blocks(self.cap, columns))


def _check_share(name: str, value: int | float) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not (whole or (isinstance(value, float) and 0 < value <= 1)):
        raise UsageError(f"budget: {name} must be a whole number >= 1 or a share in (0, 1], got {value!r}")


def _blocks(value: int | float, columns: int) -> int:
    count = value if isinstance(value, int) else max(1, ceil(value * columns - 1e-9))
    return min(count, columns)


@dataclass(frozen=True, eq=False)
class Kept:
    """Blocks that rows keep whatever their scores: a range per row, and columns that all rows keep. This takes M + C
    numbers, where a mask would take M * C.

    Make one on the host, once per layout, and move it with ``to``; it is checked when it is made, and never again.

    Args:
        first, last: (M,) int32, row m keeps the columns from ``first[m]`` up to, without, ``last[m]``.
        columns: (C,) bool, kept by every row; None = none.
        most: the most any row keeps this way.
        every: whether every row keeps some, so that none can be empty.
    """

    first: Tensor
    last: Tensor
    columns: Tensor | None = None
    most: int = 0
    every: bool = False
    blocks: int = field(default=0)

    @classmethod
    def of(cls, first: Tensor, last: Tensor, blocks: int, columns: Tensor | None = None) -> Kept:
        """From ranges and columns on the host over ``blocks`` columns.

        Raises:
            UsageError: ranges or columns outside the blocks.
        """
        for name, table in (("first", first), ("last", last)):
            if table.dim() != 1 or table.shape != first.shape or table.is_floating_point():
                raise UsageError(f"kept blocks: {name} must be one whole number per row, got {tuple(table.shape)}")
        if columns is not None and (columns.shape != (blocks,) or columns.dtype != torch.bool):
            raise UsageError(
                f"kept blocks: columns must be bool ({blocks},), got {columns.dtype} {tuple(columns.shape)}"
            )
        if len(first) and (int(first.min()) < 0 or int(last.max()) > blocks or bool((first > last).any())):
            raise UsageError(f"kept blocks: ranges must rise and lie between 0 and {blocks}")
        held = torch.zeros(blocks + 1, dtype=torch.int64)
        if columns is not None:
            held[1:] = columns.cpu().cumsum(0)
        low, high = first.long().cpu(), last.long().cpu()
        total = high - low + held[-1] - (held[high] - held[low])
        most, least = (int(total.max()), int(total.min())) if len(total) else (0, 1)
        return cls(first.to(torch.int32), last.to(torch.int32), columns, most, least > 0, blocks)

    @classmethod
    def nothing(cls, rows: int, blocks: int) -> Kept:
        """No block is kept in any case."""
        return cls.of(torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32), blocks)

    @classmethod
    def diagonal(cls, n_q: int, n_k: int, block_q: int, block_k: int, beside: int = 0) -> Kept:
        """The key blocks that hold a query block's own tokens, and ``beside`` more on either side. Where there are more
        or fewer keys than queries, the places are taken in proportion."""
        rows, blocks = -(-n_q // block_q), -(-n_k // block_k)
        start = torch.arange(rows, dtype=torch.int64) * block_q
        end = (start + block_q).clamp(max=n_q)
        low = start * n_k // n_q // block_k
        high = (end * n_k + n_q - 1) // n_q
        high = ((high + block_k - 1) // block_k).clamp(max=blocks)
        return cls.of((low - beside).clamp(min=0), (high + beside).clamp(max=blocks), blocks)

    def with_columns(self, columns: Tensor | list[int]) -> Kept:
        """Also keep columns in every row: a bool (C,) or their numbers (text, sinks)."""
        if not isinstance(columns, Tensor):
            wrong = [c for c in columns if not 0 <= c < self.blocks]
            if wrong:
                raise UsageError(f"kept blocks: columns {wrong} given, allowed: 0 to {self.blocks - 1}")
            chosen = torch.zeros(self.blocks, dtype=torch.bool)
            chosen[list(columns)] = True
            columns = chosen
        both = columns if self.columns is None else self.columns | columns
        return Kept.of(self.first, self.last, self.blocks, both)

    def rows(self, first: int, last: int) -> Kept:
        """That of a range of rows."""
        return replace(self, first=self.first[first:last], last=self.last[first:last])

    def mask(self) -> Tensor:
        """(M, C) bool, for looking at."""
        place = torch.arange(self.blocks, device=self.first.device)
        inside = (place >= self.first[:, None]) & (place < self.last[:, None])
        return inside if self.columns is None else inside | self.columns

    def to(self, device: torch.device | str) -> Kept:
        """The same with its tables on ``device``."""
        columns = None if self.columns is None else self.columns.to(device)
        return replace(self, first=self.first.to(device), last=self.last.to(device), columns=columns)
