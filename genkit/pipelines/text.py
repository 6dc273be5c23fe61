"""Lists of ``key=value`` pairs and other small texts that settings are written in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from genkit.errors import UsageError, explain

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


def as_factors(value: Any, what: str) -> Any:
    """A mapping of names to numbers as its text, alone or in a list; texts as they are."""
    several = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(join_pairs(dict(each)) if isinstance(each, Mapping) else each for each in several)


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


def shares(text: str | None, what: str) -> tuple[float, float]:
    """``"0.5:1"`` as two shares; either end may be left out."""
    if text is None:
        return 0.0, 1.0
    begin, sign, end = text.partition(":")
    try:
        found = float(begin or 0), float(end or 1)
    except ValueError:
        found = (1.0, 0.0)
    if not sign or not 0 <= found[0] < found[1] <= 1:
        raise UsageError(f"{what}: got {text!r}, allowed: two shares from 0 to 1 such as 0.5:1, the first below")
    return found
