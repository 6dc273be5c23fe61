"""A file with a strength, as a user writes it: ``file@0.8``."""

from __future__ import annotations

import math
import os
from pathlib import Path

from genkit.errors import UsageError, explain
from genkit.reading.files import user_path

#: Between a file and its strength.
STRENGTH = "@"


def path_and_strength(text: str, what: str, low: float = -math.inf, high: float = math.inf) -> tuple[Path, float]:
    """``"file[@strength]"`` -> path and strength (1.0 when not given); an existing file whose name has an @ is meant
    itself.

    Raises:
        UsageError: the strength is no finite number, or outside of ``low`` to ``high``.
    """
    name, separator, given = text.rpartition(STRENGTH)
    if not separator or _exists(text):
        name, given = text, "1"
    try:
        strength = float(given)
    except ValueError:
        strength = math.nan
    if not (math.isfinite(strength) and low <= strength <= high):
        allowed = "a number" if low == -math.inf else f"a number >= {low:g}"
        allowed = allowed if high == math.inf else f"a number from {low:g} to {high:g}"
        raise UsageError(explain(f"{what} strength", given, f"{allowed}, as in {what.strip('-')}@0.8"))
    return user_path(name, what), strength


def strength_text(strength: float) -> str:
    """A strength as it is written: few digits where they say it, else all that it has."""
    short = f"{strength:g}"
    return short if float(short) == strength else repr(strength)


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # a NUL; told by user_path
        return False
