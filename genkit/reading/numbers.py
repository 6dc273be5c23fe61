"""Rates from flags and files, exact, and never computed from what is out of all proportion."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from genkit.errors import UsageError, explain

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
