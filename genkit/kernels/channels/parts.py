"""How the channels of a head are taken apart: kernels only hold tiles whose sides are powers of two."""

from __future__ import annotations

from functools import cache

#: (first channel, channels) of every part, one behind the other.
Parts = tuple[tuple[int, int], ...]

#: Channels that a matrix unit takes at least.
LEAST = 16


def padded(dim: int) -> int:
    """The next power of two, at least 16."""
    return max(LEAST, 1 << (dim - 1).bit_length())


def one_part(dim: int) -> Parts:
    """A head of ``dim`` channels as a single part, filled up to the next power of two."""
    return ((0, padded(dim)),)


@cache
def head_parts(dim: int) -> Parts:
    """Parts of a head of ``dim`` channels: one power of two or two, the larger first, that hold it with least to spare.

    80 channels are 64 and 16, 160 are 128 and 32: scores are the sum of the products over the parts, and the output has
    an accumulator per part, so no lane multiplies zeros. 72 are 64 and 16 too, with half of the 16 empty. Three parts
    would fit 112 exactly, and cost more than the empty lanes of 128 (docs/kernels.md): each part more has waits,
    barriers and addresses of its own.
    """
    first = padded(dim) // 2
    second = padded(dim - first)
    return one_part(dim) if second >= first else ((0, first), (first, second))
