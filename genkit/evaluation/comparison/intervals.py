"""Means over prompts and seeds with their confidence intervals, paired: every value belongs to one prompt and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Student's t at 97.5 %, by degrees of freedom from 1.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.959964
#: Values from which an interval is given: with two, Student's t is 12.7.
LEAST = 3


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that covers the true one in 95 of 100 repetitions, by Student's t.

    Args:
        mean: over ``count`` prompts and seeds.
        low, high: the interval; None for fewer than three values, of which it would say nothing.
        count: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


def student_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t; beyond 30 degrees of freedom to three digits (Cornish and Fisher)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of values with its interval; None without values."""
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count < LEAST:
        return Interval(mean, None, None, count)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = student_t(count - 1) * spread / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def ratio(values: Sequence[float], to: Sequence[float]) -> Interval | None:
    """The geometric mean of paired ratios with its interval; None without pairs of positive values."""
    pairs = [(one, other) for one, other in zip(values, to, strict=True) if one > 0 and other > 0]
    found = interval([math.log(one / other) for one, other in pairs])
    if found is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Interval(math.exp(found.mean), low, high, found.count)
