"""The errors genkit raises on purpose.

Every message says what was given, what is allowed and what to do about it; :func:`explain` builds such a message.
The command line maps :class:`UsageError` to exit code 2 and every other :class:`GenkitError` to exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        given: what the caller passed.
        allowed: the accepted values (listed) or a sentence describing them.
        do: what to do instead. With a list of allowed names and no ``do``, the closest name is suggested.
    """
    if isinstance(allowed, str):
        choices = allowed
    else:
        names = [str(name) for name in allowed]
        choices = ", ".join(names) if names else "nothing"
        close = difflib.get_close_matches(str(given), names, n=1)
        if do is None and close:
            do = f"did you mean {close[0]!r}?"
    message = f"{what}: got {given!r}, allowed: {choices}"
    return f"{message}; {do}" if do else message
