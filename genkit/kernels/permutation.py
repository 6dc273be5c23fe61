"""Token orders: a permutation with padding, so that a block of consecutive tokens is near together on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.layout import GRID, TokenLayout


@dataclass(frozen=True)
class Strips:
    """A way to walk through a grid: strips of a fixed cross-section along one axis, one after the other.

    Where a strip ends the next one begins beside it and goes back, and so do rows of strips. Tokens that follow each
    other are near each other everywhere, so blocks may be cut from the walk at any place: none of them needs padding.

    Args:
        sides: tokens across a strip on every axis, None on the one axis that strips run along.
        even: cut an axis into strips that are as equal as can be, none wider than its side; else all strips have their
            side but the last one, which takes what is left.
    """

    sides: tuple[int | None, ...]
    even: bool = True

    def __post_init__(self):
        if sum(side is None for side in self.sides) != 1 or any(side is not None and side < 1 for side in self.sides):
            raise UsageError(f"strips: sides must be whole numbers >= 1 and one None, got {self.sides}")

    @property
    def run(self) -> int:
        """The axis that strips run along."""
        return self.sides.index(None)

    def walk(self, grid: Sequence[int], dilation: Sequence[int] | int = 1) -> Tensor:
        """(prod(grid),) int64: the tokens of a row-major grid in the order they are met.

        Args:
            dilation: per axis; coordinates are first sorted by their remainder, and no strip crosses from one
                remainder to the next.
        """
        steps = _steps(grid, dilation)
        if len(self.sides) != len(grid) or len(steps) != len(grid):
            raise UsageError(f"strips: {self.sides} and dilation {steps} need one number for each axis of {grid}")
        strip = torch.zeros(1, dtype=torch.int64)
        for axis, side in enumerate(self.sides):
            if side is None:
                continue
            piece = _along(grid, axis, _pieces(grid[axis], steps[axis], side, self.even))
            count = int(piece.max()) + 1
            # every second row of strips goes back
            strip = strip * count + torch.where(strip % 2 == 1, count - 1 - piece, piece)
        length = grid[self.run]
        place = _along(grid, self.run, _slots(length, steps[self.run]))
        walked = strip * length + torch.where(strip % 2 == 1, length - 1 - place, place)
        return walked.expand(*grid).reshape(-1).argsort(stable=True)


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """A permutation of N tokens into blocks of ``block`` slots; border blocks keep their tokens in front.

    Args:
        gather: (blocks * block,) int64, the token in every slot, -1 for padding.
        inverse: (N,) int64, the slot of every token.
        valid: (blocks,) int32, tokens at the front of each block.
        block: slots per block.
        padding: (P,) int64, the slots where ``gather`` is -1.
    """

    gather: Tensor
    inverse: Tensor
    valid: Tensor
    block: int
    padding: Tensor

    @classmethod
    def from_grid(
        cls,
        grid: Sequence[int],
        tile: Sequence[int],
        segments: Sequence[tuple[str, int]] = (),
        dilation: Sequence[int] | int = 1,
    ) -> TokenOrder:
        """Blocks that are boxes of a grid of any number of axes (1-D, 2-D, 3-D).

        Args:
            grid: tokens along each axis, row-major. tile: box of one block, cut at the grid's border.
            segments: (name, length) in sequence order, one named ``"grid"``; empty = the grid alone. Every other
                segment fills blocks of its own, padded at its end.
            dilation: per axis; tokens are first split by coordinate modulo dilation, tiles count inside a group.
        """
        grid, tile, steps = tuple(grid), tuple(tile), _steps(grid, dilation)
        if not (len(grid) == len(tile) == len(steps)) or min((*tile, *steps), default=0) < 1:
            raise UsageError(
                f"token order: tile {tile} and dilation {steps} need one number >= 1 for each axis of the grid {grid}"
            )
        return cls._from_segments(grid, _tiles(grid, tile, steps), prod(tile), segments)

    @classmethod
    def from_strips(
        cls,
        grid: Sequence[int],
        strips: Strips,
        block: int,
        segments: Sequence[tuple[str, int]] = (),
        dilation: Sequence[int] | int = 1,
    ) -> TokenOrder:
        """Blocks that are cut one after the other from a walk through the grid: only the last one may have padding.

        Args:
            strips: the walk. block: tokens per block.
            Others as in :meth:`from_grid`.
        """
        grid = tuple(grid)
        if block < 1:
            raise UsageError(f"token order: block must be >= 1, got {block}")
        return cls._from_segments(grid, list(strips.walk(grid, dilation).split(block)), block, segments)

    @classmethod
    def from_layout(cls, layout: TokenLayout, tile: Sequence[int], dilation: Sequence[int] | int = 1) -> TokenOrder:
        """Order of a :class:`~genkit.layout.TokenLayout`; ``tile`` is (T, H, W), for example (2, 8, 8)."""
        segments = [(segment.name, segment.length) for segment in layout.segments]
        if not layout.has_grid:
            return cls.from_permutation(torch.arange(layout.length), prod(tile))
        return cls.from_grid(layout.grid, tile, segments, dilation)

    @classmethod
    def _from_segments(
        cls, grid: tuple[int, ...], parts: Sequence[Tensor], block: int, segments: Sequence[tuple[str, int]]
    ) -> TokenOrder:
        """Blocks of the grid's tokens where the grid stands among the segments."""
        blocks: list[Tensor] = []
        start = 0
        for name, length in segments or ((GRID, prod(grid)),):
            if name == GRID:
                if length != prod(grid):
                    raise UsageError(f"token order: the grid {grid} has {prod(grid)} tokens, its segment {length}")
                blocks += [part + start for part in parts]
            else:
                blocks += list(torch.arange(start, start + length).split(block))
            start += length
        return cls._from_blocks([part for part in blocks if part.numel()], block, start)

    @classmethod
    def from_permutation(cls, permutation: Tensor, block: int) -> TokenOrder:
        """Any order (a curve, a sort): slot i holds token ``permutation[i]``; the tail block is padded."""
        permutation = permutation.to(torch.int64)
        if permutation.dim() != 1 or not torch.equal(
            permutation.sort().values, torch.arange(permutation.numel(), device=permutation.device)
        ):
            raise UsageError("token order: the permutation must hold every index from 0 to N - 1 once")
        if block < 1:
            raise UsageError(f"token order: block must be >= 1, got {block}")
        return cls._from_blocks(
            list(permutation.split(block)) if permutation.numel() else [], block, permutation.numel()
        )

    @classmethod
    def from_blocks(cls, blocks: Sequence[Tensor], block: int) -> TokenOrder:
        """Blocks as they are given: (n,) int64 tokens each, n from 1 to ``block``; every token from 0 to N - 1 once."""
        tokens = sum(part.numel() for part in blocks)
        if any(not 1 <= part.numel() <= block for part in blocks):
            sizes = sorted({part.numel() for part in blocks})
            raise UsageError(f"token order: blocks must hold 1 to {block} tokens, got {sizes}")
        if blocks and not torch.equal(torch.cat(list(blocks)).sort().values, torch.arange(tokens)):
            raise UsageError("token order: the blocks must hold every index from 0 to N - 1 once")
        return cls._from_blocks(blocks, block, tokens)

    @classmethod
    def _from_blocks(cls, blocks: Sequence[Tensor], block: int, tokens: int) -> TokenOrder:
        if not blocks:
            raise UsageError("token order: there are no tokens to order")
        sizes = torch.tensor([part.numel() for part in blocks])
        members = torch.cat(list(blocks)).cpu()
        first = torch.arange(len(blocks)) * block
        slots = torch.repeat_interleave(first - (sizes.cumsum(0) - sizes), sizes) + torch.arange(tokens)
        gather = torch.full((len(blocks) * block,), -1)
        gather[slots] = members
        inverse = torch.empty(tokens, dtype=torch.int64)
        inverse[members] = slots
        return cls(gather, inverse, sizes.to(torch.int32), block, (gather < 0).nonzero().flatten())

    @property
    def length(self) -> int:
        """Number of tokens N."""
        return self.inverse.shape[0]

    @property
    def padded(self) -> int:
        """Number of slots, ``blocks * block``."""
        return self.gather.shape[0]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.valid.shape[0]

    def to(self, device: torch.device | str) -> TokenOrder:
        """The same order with its tables on ``device``."""
        tables = {name: getattr(self, name).to(device) for name in ("gather", "inverse", "valid", "padding")}
        return replace(self, **tables)

    def apply(self, x: Tensor, dim: int = 1) -> Tensor:
        """Tokens of ``x`` along ``dim`` (length N) in block order (length ``padded``), padding 0. Differentiable."""
        self._expect(x, dim, self.length)
        return _Move.apply(x, dim, self.gather, self.inverse, self.padding)

    def restore(self, x: Tensor, dim: int = 1) -> Tensor:
        """Inverse of :meth:`apply`: (..., padded, ...) back to (..., N, ...). Differentiable."""
        self._expect(x, dim, self.padded)
        return _Move.apply(x, dim, self.inverse, self.gather, self.padding)

    def _expect(self, x: Tensor, dim: int, length: int) -> None:
        if x.shape[dim] != length:
            raise UsageError(
                f"token order: axis {dim} has length {x.shape[dim]}, expected {length} "
                f"({self.length} tokens in {self.blocks} blocks of {self.block})"
            )


class _Move(torch.autograd.Function):
    """Gather along an axis where -1 means zero. The gradient is a gather too, by the inverse table: no scatter, so
    the result does not depend on the order of additions.

    A mask over all slots would read and write everything once more, and on a CPU take twenty times as long as the
    gather: only the few slots of padding are written again.
    """

    @staticmethod
    def forward(ctx, x, dim, table, inverse, padding):
        ctx.dim = dim
        ctx.save_for_backward(table, inverse, padding)
        # only the longer of the two tables can point at padding
        if table.numel() <= inverse.numel():
            return x.index_select(dim, table)
        return x.index_select(dim, table.clamp(min=0)).index_fill_(dim, padding, 0)

    @staticmethod
    def backward(ctx, grad):
        table, inverse, padding = ctx.saved_tensors
        return _Move.apply(grad, ctx.dim, inverse, table, padding), None, None, None, None


def _tiles(grid: Sequence[int], tile: Sequence[int], dilation: Sequence[int]) -> list[Tensor]:
    """Token indices of every box, dilation group by dilation group, row-major inside a box."""
    index = torch.arange(prod(grid)).view(tuple(grid))
    parts = [index]
    for axis, step in enumerate(dilation):
        parts = [part[(slice(None),) * axis + (slice(g, None, step),)] for part in parts for g in range(step)]
    boxes = []
    for part in parts:
        pieces = [part]
        for axis, size in enumerate(tile):
            pieces = [cut for piece in pieces if piece.numel() for cut in piece.split(size, dim=axis)]
        boxes += [piece.reshape(-1) for piece in pieces]
    return boxes


def _steps(grid: Sequence[int], dilation: Sequence[int] | int) -> tuple[int, ...]:
    return (dilation,) * len(grid) if isinstance(dilation, int) else tuple(dilation)


def _slots(length: int, step: int) -> Tensor:
    """(length,) int64: the place of every coordinate once coordinates are sorted by their remainder modulo ``step``."""
    coordinate = torch.arange(length)
    return (coordinate % step * length + coordinate).argsort().argsort()


def _pieces(length: int, step: int, side: int, even: bool) -> Tensor:
    """(length,) int64: the number of the piece of at most ``side`` tokens that every coordinate of an axis is in."""
    coordinate = torch.arange(length)
    found, first = torch.empty(length, dtype=torch.int64), 0
    for group in range(min(step, length)):
        place = coordinate[: len(coordinate[group::step])]
        count = -(-len(place) // side)
        found[group::step] = first + (place * count // len(place) if even else place // side)
        first += count
    return found


def _along(grid: Sequence[int], axis: int, values: Tensor) -> Tensor:
    """Values of the coordinates of one axis, to broadcast over a grid."""
    shape = [1] * len(grid)
    shape[axis] = -1
    return values.view(shape)
