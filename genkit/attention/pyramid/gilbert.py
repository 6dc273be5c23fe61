"""A curve through a box of any size whose steps go to a neighbour, nearly always: the generalised Hilbert curve.

As a recursion: a box is walked along its first axis; a long one is cut in two across it, any other into three or five
boxes that are walked so that one ends where the next begins.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

Vector = tuple[int, int, int]


def gilbert_order(grid: tuple[int, int, int]) -> torch.Tensor:
    """Tokens of a grid (T, H, W) in the order in which the curve meets them, (T*H*W,) int64 raster numbers.

    The curve starts along the longest axis; of equal ones width goes before height before time.
    """
    frames, rows, columns = grid
    across, down, through = (columns, 0, 0), (0, rows, 0), (0, 0, frames)
    longest = max((across, down, through), key=_length)
    second, third = (down, through) if longest == across else (across, through if longest == down else down)
    met = [x + columns * (y + rows * z) for x, y, z in _walk((0, 0, 0), longest, second, third)]
    return torch.tensor(met, dtype=torch.int64)


def _length(vector: Vector) -> int:
    return abs(sum(vector))


def _unit(vector: Vector) -> Vector:
    return tuple((part > 0) - (part < 0) for part in vector)  # type: ignore[return-value]


def _add(*vectors: Vector) -> Vector:
    return tuple(map(sum, zip(*vectors, strict=True)))  # type: ignore[return-value]


def _minus(vector: Vector) -> Vector:
    return tuple(-part for part in vector)  # type: ignore[return-value]


def _half(vector: Vector) -> Vector:
    """Half of a side, rounded down with its sign, made even where the side is longer than 2."""
    half: Vector = tuple(part // 2 for part in vector)  # type: ignore[assignment]
    return _add(half, _unit(vector)) if _length(half) % 2 and _length(vector) > 2 else half


def _walk(at: Vector, a: Vector, b: Vector, c: Vector) -> Iterator[Vector]:
    """The places of the box at ``at`` that is spanned by a (the way to go), b and c."""
    w, h, d = map(_length, (a, b, c))
    for side, others in ((a, (h, d)), (b, (w, d)), (c, (w, h))):
        if others == (1, 1):
            for _ in range(_length(side)):
                yield at
                at = _add(at, _unit(side))
            return
    a2, b2, c2 = map(_half, (a, b, c))
    rest_a, rest_b, rest_c = (_add(side, _minus(half)) for side, half in ((a, a2), (b, b2), (c, c2)))
    last_a, last_b, last_c = (_add(side, _minus(_unit(side))) for side in (a, b, c))
    end_b, end_c = (_add(half, _minus(_unit(side))) for half, side in ((b2, b), (c2, c)))
    if 2 * w > 3 * h and 2 * w > 3 * d:
        parts = [(at, a2, b, c), (_add(at, a2), rest_a, b, c)]
    elif 3 * h > 4 * d:
        parts = [
            (at, b2, c, a2),
            (_add(at, b2), a, rest_b, c),
            (_add(at, last_a, end_b), _minus(b2), c, _minus(rest_a)),
        ]
    elif 3 * d > 4 * h:
        parts = [
            (at, c2, a2, b),
            (_add(at, c2), a, b, rest_c),
            (_add(at, last_a, end_c), _minus(c2), _minus(rest_a), b),
        ]
    else:
        parts = [
            (at, b2, c2, a2),
            (_add(at, b2), c, a2, rest_b),
            (_add(at, end_b, last_c), a, _minus(b2), _minus(rest_c)),
            (_add(at, last_a, b2, last_c), _minus(c), _minus(rest_a), rest_b),
            (_add(at, last_a, end_b), _minus(b2), c2, _minus(rest_a)),
        ]
    for part in parts:
        yield from _walk(*part)
