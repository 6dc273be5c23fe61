"""The errors genkit raises on purpose, and how a value or a text of any origin is shown in a message.

Every message says what was given, what is allowed and what to do about it; :func:`explain` builds such a message.
The command line maps :class:`UsageError` to exit code 2 and every other :class:`GenkitError` to exit code 1.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping

#: Characters of a value in a message; more are cut out of its middle.
SHOWN = 200
#: Items of a list or mapping, and levels inside each other, that a message shows.
SHOWN_ITEMS, SHOWN_DEPTH = 8, 3
#: Invisible characters that belong to words of some scripts and change nothing else on a terminal.
_JOINERS = "\u200c\u200d"


class GenkitError(Exception):
    """Base class: something genkit refuses or cannot do, told in one line. Exit code 1 on the command line."""

    exit_code = 1


class UsageError(GenkitError, ValueError):
    """A wrong argument: unknown name, wrong type, impossible combination. Exit code 2 on the command line."""

    exit_code = 2


class UnsupportedError(GenkitError):
    """The request is well formed, but this machine, model or backend cannot serve it."""


class ArtifactError(GenkitError):
    """A file or folder that is missing, truncated, corrupt or not what it claims to be."""


def explain(what: str, given: object, allowed: Iterable[object] | str, do: str | None = None) -> str:
    """Compose a message of the form "what: given ..., allowed ...; do".

    Args:
        what: the argument or thing concerned.
        given: what the caller passed; shown by :func:`shown`.
        allowed: the accepted values (listed) or a sentence describing them.
        do: what to do instead. With a list of allowed names and no ``do``, the closest name is suggested.
    """
    if isinstance(allowed, str):
        choices = allowed
    else:
        names = [str(name) for name in allowed]
        choices = ", ".join(names) if names else "nothing"
        close = difflib.get_close_matches(given, names, n=1) if isinstance(given, str) and len(given) <= SHOWN else []
        if do is None and close:
            do = f"did you mean {close[0]!r}?"
    message = f"{what}: got {shown(given)}, allowed: {choices}"
    return f"{message}; {do}" if do else message


def counted(count: object, noun: str, several: str | None = None) -> str:
    """A number with its noun: ``1 frame``, ``2 frames``.

    Args:
        count: the number, or as it is written; other words are several.
        noun: of one, with its verb where that changes too, such as ``file is``.
        several: the same of several; the noun with an s when left out.
    """
    return f"{count} {noun if count in (1, '1') else several or f'{noun}s'}"


def shown(value: object) -> str:
    """A value as a message shows it: its ``repr``, at most about :data:`SHOWN` characters, no control characters.

    Takes time and memory for what is shown only, also where values contain each other many times.
    """
    return shortened(escaped(_shown(value, SHOWN_DEPTH)))


def _shown(value: object, depth: int) -> str:
    if isinstance(value, (str, bytes)):
        return _cut(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return _shown_items(value, depth)
    try:
        return repr(value)
    except Exception as error:  # a repr may do anything; a message must come out
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _cut(value: str | bytes) -> str:
    """The repr of a text; of a long one its two ends and its length."""
    if len(value) <= SHOWN:
        return repr(value)
    unit = "characters" if isinstance(value, str) else "bytes"
    return f"{value[: SHOWN // 2]!r} ... {value[-SHOWN // 4 :]!r} ({len(value)} {unit})"


def _shown_items(value: list | tuple | set | frozenset | Mapping, depth: int) -> str:
    begin, end = {list: "[]", tuple: "()"}.get(type(value), "{}")
    if not value and not isinstance(value, (list, tuple, dict)):
        return f"{type(value).__name__}()"
    if depth == 0:
        return f"{begin}...{end}" if value else begin + end
    parts = []
    for number, item in enumerate(value):
        if number == SHOWN_ITEMS:
            parts.append(f"... {len(value) - SHOWN_ITEMS} more")
            break
        text = _shown(item, depth - 1)
        parts.append(f"{text}: {_shown(value[item], depth - 1)}" if isinstance(value, Mapping) else text)
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{begin}{', '.join(parts)}{comma}{end}"


def shortened(text: str, most: int = SHOWN) -> str:
    """A text of at most about ``most`` characters; of a longer one its beginning, its end and its length."""
    if len(text) <= most + 40:
        return text
    return f"{text[: most * 3 // 4]} ... {text[-most // 4 :]} ({len(text)} characters)"


def escaped(text: str) -> str:
    """A text with its control characters written out (``\\x1b``): a terminal shows it and obeys nothing in it.

    Line breaks stay. What changes the direction of writing, half characters and unassigned ones are written out too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if _harmless(each) else repr(each)[1:-1] for each in text)


def said(error: BaseException) -> str:
    """The first line of what an error says, for messages."""
    lines = str(error).strip().splitlines()
    return shortened(escaped(lines[0]), 300) if lines else type(error).__name__


def _harmless(character: str) -> bool:
    if character == "\n" or character in _JOINERS:
        return True
    return unicodedata.category(character)[0] != "C" and character not in "\u2028\u2029"
