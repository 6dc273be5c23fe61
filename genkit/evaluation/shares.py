"""Means and shares of right answers with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError


@dataclass(frozen=True)
class Share:
    """A mean of values in 0..1 or in units of its own, with its standard error.

    Args:
        mean: of the values.
        error: standard error.
        cases: how many.
    """

    mean: float
    error: float
    cases: int

    @property
    def percent(self) -> str:
        """As ``85 ± 4``."""
        return f"{100 * self.mean:.0f} ± {100 * self.error:.0f}"

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.error:.1f}"


def share_of(values: Sequence[bool]) -> Share:
    """Share of right answers; its error is that of Agresti and Coull, which is not 0 where all or none are right.

    Raises:
        UsageError: no values.
    """
    mean, cases = _mean(values)
    middle = (cases * mean + 2) / (cases + 4)
    return Share(mean, float(np.sqrt(middle * (1 - middle) / (cases + 4))), cases)


def mean_of(values: Sequence[float]) -> Share:
    """Mean of numbers with its standard error.

    Raises:
        UsageError: no values.
    """
    mean, cases = _mean(values)
    spread = float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) if cases > 1 else float("nan")
    return Share(mean, spread / float(np.sqrt(cases)), cases)


def _mean(values: Sequence[float]) -> tuple[float, int]:
    if not len(values):
        raise UsageError("there is no mean of no values: give at least one")
    return float(np.mean(np.asarray(values, dtype=np.float64))), len(values)
