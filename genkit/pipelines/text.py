"""Lists of ``key=value`` pairs and other small texts that settings are written in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.reading import user_path

#: Between a file and its strength.
STRENGTH = "@"
KEY = re.compile(r"[A-Za-z_][\w.]*$")


def parse_pairs(text: str, what: str) -> dict[str, str]:
    """``"a=1,b=2,3,c=x"`` -> ``{"a": "1", "b": "2,3", "c": "x"}``: a comma separates pairs only where a new ``key=``
    follows.

    Raises:
        UsageError: no ``=``, an empty key or value, a key given twice.
    """
    pairs: dict[str, str] = {}
    last = None
    for piece in text.split(","):
        key, sign, value = piece.partition("=")
        key = key.strip()
        if sign and KEY.match(key):
            if key in pairs:
                raise UsageError(f"{what}: {key!r} is given twice in {text!r}")
            pairs[key], last = value.strip(), key
        elif last is not None and not sign:
            pairs[last] += f",{piece.strip()}"
        else:
            raise UsageError(explain(what, text, "key=value pairs separated by commas"))
    empty = [key for key, value in pairs.items() if not value.strip(",")]
    if empty:
        raise UsageError(f"{what}: {empty[0]!r} has no value in {text!r}")
    return pairs


def path_and_strength(text: str, what: str, low: float = -math.inf) -> tuple[Path, float]:
    """``"file[@strength]"`` -> path and strength (1.0 when not given); an existing file whose name has an @ is meant
    itself.

    Raises:
        UsageError: the strength is no finite number, or below ``low``.
    """
    name, separator, given = text.rpartition(STRENGTH)
    if not separator or _exists(text):
        name, given = text, "1"
    try:
        strength = float(given)
    except ValueError:
        strength = math.nan
    if not (math.isfinite(strength) and strength >= low):
        allowed = "a number" if low == -math.inf else f"a number >= {low:g}"
        raise UsageError(explain(f"{what} strength", given, f"{allowed}, as in {what.strip('-')}@0.8"))
    return user_path(name, what), strength


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # a NUL; told by user_path
        return False


def join_pairs(pairs: dict) -> str:
    """The inverse of :func:`parse_pairs`; keys in order, lists as comma-separated texts."""
    return ",".join(f"{key}={_plain(value)}" for key, value in pairs.items())


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_pairs(value: Any, what: str) -> Any:
    """A text of pairs as the pairs, the keys of a mapping as texts; anything else as it is."""
    if isinstance(value, str):
        return parse_pairs(value, what)
    return {str(key): part for key, part in value.items()} if isinstance(value, Mapping) else value


def as_pairs_text(value: Any, what: str) -> Any:
    """A mapping as a text of pairs; anything else as it is."""
    return join_pairs(dict(value)) if isinstance(value, Mapping) else value


def as_texts(value: Any, what: str) -> Any:
    """A single text as a list of one; anything else as it is."""
    return (value,) if isinstance(value, str) else value


def slug(text: str, length: int = 48) -> str:
    """A file name from a prompt: lower case letters and digits joined by dashes, cut at a word; ``"clip"`` when
    nothing is left."""
    words = re.findall(r"[^\W_]+", text[: 8 * length].lower())
    name = ""
    for word in words:
        if len((name + "-" + word).encode()) > length:
            break
        name = f"{name}-{word}" if name else word
    return name or "clip"
