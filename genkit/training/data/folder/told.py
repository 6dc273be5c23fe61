"""Lists of what is wrong or worth knowing, in one line each."""

from __future__ import annotations

from collections.abc import Sequence

#: Of a list in a message.
SHOWN = 3


def listed(lines: Sequence[str], between: str = ", ") -> str:
    """The first lines, and how many more there are."""
    more = f"{between if between != ', ' else ' '}and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return between.join(lines[:SHOWN]) + more
