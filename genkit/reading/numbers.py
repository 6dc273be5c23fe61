"""Numbers from flags and files: exact rates, never computed from what is out of all proportion; types of argparse."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from fractions import Fraction

from genkit.errors import UsageError, explain, shown

#: Characters of a rate.
MOST_CHARACTERS = 40
_REAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_RATIO = re.compile(r"[+-]?\d+/\d+", re.ASCII)


def rate(value: object, what: str = "fps", low: Fraction | float = 0, high: Fraction | float = 1000) -> Fraction:
    """A rate as an exact fraction from 8, "23.976" or "30000/1001": above ``low`` and up to ``high``.

    Raises:
        UsageError: something else, or out of the range.
    """
    allowed = f"a number above {low} and up to {high}, such as 8, 23.976 or 30000/1001"
    found = _fraction(value)
    if found is None or not low < found <= high:
        raise UsageError(explain(what, value if not isinstance(value, Fraction) else _plain(value), allowed))
    return found


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for :mod:`argparse`: a whole number from ``low`` on, up to ``high`` where that is given."""
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def read(text: str) -> int:
        found = int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text) else None
        if found is None or found < low or (high is not None and found > high):
            raise argparse.ArgumentTypeError(f"got {shown(text)}, allowed: {allowed}")
        return found

    return read


def number(low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A type for :mod:`argparse`: a finite number from ``low`` to ``high``, ``low`` itself left out with ``above``."""
    allowed = f"a number {'above' if above else 'of at least'} {low:g}"
    allowed += "" if high == math.inf else f", at most {high:g}"

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and low <= found <= high) or (above and found == low):
            raise argparse.ArgumentTypeError(f"got {shown(text)}, allowed: {allowed}")
        return found

    return read


def _plain(value: Fraction) -> object:
    short = value.numerator.bit_length() < 130 and value.denominator.bit_length() < 130
    return str(value) if short else value.numerator


def _fraction(value: object) -> Fraction | None:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > MOST_CHARACTERS or not (_REAL.fullmatch(text) or _RATIO.fullmatch(text)):
            return None
        numerator, _, denominator = text.partition("/")
        if denominator and int(denominator) == 0:
            return None
        return Fraction(text)
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return Fraction(value)
