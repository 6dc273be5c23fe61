"""Best approximations of a given rank, in the Frobenius norm (Eckart and Young 1936), and what they lose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genkit.lora.pair import Pair

if TYPE_CHECKING:
    import torch

#: From this side on a small rank is found by random projection, which is faster by the ratio of the two.
_LARGE = 1024
_OVERSAMPLED, _ITERATIONS = 32, 6


@dataclass(frozen=True)
class Cut:
    """An approximation and what it loses.

    Args:
        pair: the halves, with a scale of one.
        lost, whole: squared Frobenius norms of the error and of what was approximated.
    """

    pair: Pair
    lost: float
    whole: float

    @property
    def error(self) -> float:
        """The error relative to the whole; 0 for nothing."""
        return relative(self.lost, self.whole)


def relative(lost: float, whole: float) -> float:
    """A relative error from squared norms."""
    return math.sqrt(max(lost, 0.0) / whole) if whole > 0 else 0.0


def cut(pair: Pair, rank: int | None = None, error: float | None = None) -> Cut:
    """The best pair of smaller rank with the same change as nearly as possible; biases stay.

    Computed on the two triangles of QR decompositions in float64, never on the full matrix: time O((in + out) r^2).

    Args:
        pair: with a scale of one.
        rank: at most so many columns.
        error: the smallest rank whose relative error is at most this, in place of ``rank``.
    """
    import torch

    dtype, shapes = pair.up.dtype, (pair.up.shape, pair.down.shape)
    left, upper = torch.linalg.qr(pair.up.flatten(1).double())
    right, lower = torch.linalg.qr(pair.down.flatten(1).double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    kept = _kept(values, rank, error)
    return _halves(left @ u[:, :kept], values, v[:kept] @ right.T, kept, shapes, dtype, pair)


def decompose(change: torch.Tensor, rank: int | None = None, error: float | None = None) -> Cut:
    """The best pair for a whole change of a weight.

    With ``rank`` far below the sides the subspace is found by seeded random projection with power iterations (Halko,
    Martinsson and Tropp 2011); what it loses is measured, not bounded.

    Args:
        change: (out, in) or (out, in, kh, kw).
        rank, error: as for :func:`cut`.
    """
    import torch

    matrix = change.flatten(1).float()
    shapes = ((change.shape[0], 1) + (1,) * (change.ndim - 2), (1, *change.shape[1:]))
    if rank is not None and min(matrix.shape) >= _LARGE and 4 * (rank + _OVERSAMPLED) < min(matrix.shape):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, values, v = torch.svd_lowrank(matrix, q=rank + _OVERSAMPLED, niter=_ITERATIONS)
        right = v.T
    else:
        u, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = _kept(values, rank, error)
    found = _halves(u[:, :kept].double(), values.double(), right[:kept].double(), kept, shapes, torch.float32, None)
    left = matrix.double() - found.pair.up.flatten(1).double() @ found.pair.down.flatten(1).double()
    return Cut(found.pair, float(left.square().sum()), float(matrix.double().square().sum()))


def _kept(values: torch.Tensor, rank: int | None, error: float | None) -> int:
    """How many singular values to keep; at least one."""
    if error is None:
        return max(1, min(rank or len(values), len(values)))
    squares = values.double().square()
    left = squares.flip(0).cumsum(0).flip(0)  # lost when cut before each
    enough = (left <= error**2 * squares.sum()).nonzero()
    return max(1, int(enough[0]) if len(enough) else len(values))


def _halves(
    left: torch.Tensor,
    values: torch.Tensor,
    right: torch.Tensor,
    kept: int,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    pair: Pair | None,
) -> Cut:
    """The root of the singular values goes into either half, so that both are of like size."""
    roots = values[:kept].sqrt()
    up = (left * roots).to(dtype).reshape(shapes[0][0], kept, *shapes[0][2:])
    down = (roots[:, None] * right).to(dtype).reshape(kept, *shapes[1][1:])
    squares = values.double().square()
    bias = None if pair is None else pair.bias
    halves = Pair(down=down.contiguous(), up=up.contiguous(), bias=bias)
    return Cut(halves, float(squares[kept:].sum()), float(squares.sum()))


def norm(pair: Pair) -> float:
    """Frobenius norm of the change, scale included; by the small products, never the full matrix."""
    up, down = pair.up.flatten(1).double(), pair.down.flatten(1).double()
    return abs(pair.scale) * math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
