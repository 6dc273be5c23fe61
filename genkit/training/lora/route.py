"""What ``--route START:END:RATIO`` says; nothing here needs torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from genkit.errors import UsageError, explain, shown

_WRITTEN = re.compile(r"(-?\d+)?:(-?\d+)?:(\d+\.?\d*|\.\d+)", re.ASCII)
_ALLOWED = "START:END:RATIO, such as 2:-2:0.5: blocks (END is not among them, negative counts from the end) and a share"
#: The largest share of tokens that may skip blocks.
MOST = 0.95
#: No model has more blocks.
_BLOCKS = 9999


@dataclass(frozen=True)
class Route:
    """A span of blocks that a share of the tokens skips in training (TREAD).

    Args:
        start, stop: half-open range of blocks over all lists in the order of execution; negative counts from the end,
            None is the first or the end.
        ratio: share of the tokens that skip it, in 0 .. :data:`MOST`.
    """

    start: int | None
    stop: int | None
    ratio: float

    @classmethod
    def parse(cls, text: str, what: str = "--route") -> Route:
        """From its written form; UsageError for anything else, and for numbers beyond their range."""
        found = _WRITTEN.fullmatch(text.strip())
        if found is None:
            raise UsageError(explain(what, text, _ALLOWED))
        start, stop = (
            _block(end, f"{what}, {name}") for name, end in zip(("START", "END"), found.groups(), strict=False)
        )
        ratio = float(found[3])
        if not ratio <= MOST:
            raise UsageError(explain(f"{what}, share of skipping tokens", ratio, f"a number from 0 to {MOST}"))
        return cls(start, stop, ratio)

    def __str__(self) -> str:
        stop = "" if self.stop is None else self.stop
        return f"{self.start or 0}:{stop}:{Decimal(repr(self.ratio)):f}"  # no exponent, which parse does not read

    def span(self, count: int, most: int | None = None) -> tuple[int, int]:
        """The blocks of a model with ``count`` of them, of which the first ``most`` can be skipped.

        Raises:
            UsageError: an empty span, or one that reaches beyond.
        """
        most = count if most is None else most
        start, stop = (end + count if end is not None and end < 0 else end for end in (self.start, self.stop))
        start, stop = 0 if start is None else start, most if stop is None else stop
        if not 0 <= start < stop <= most:
            beyond = "" if most == count else f" (the {count - most} after them get other tokens)"
            raise UsageError(
                f"--route: blocks {start}:{stop} of a model with {count}; allowed: 0 <= START < END <= {most}{beyond}"
            )
        return start, stop

    def kept(self, tokens: int) -> int:
        """How many of the tokens go through the span."""
        return max(1, round(tokens * (1 - self.ratio)))


def _block(text: str | None, what: str) -> int | None:
    """The number of a block; None where none is written."""
    if text is None:
        return None
    digits = text.lstrip("-0") or "0"
    if len(digits) > len(str(_BLOCKS)):
        raise UsageError(explain(what, text, f"a block from {-_BLOCKS} to {_BLOCKS}"))
    return -int(digits) if text.startswith("-") else int(digits)


def as_route(value: Any, what: str) -> str:
    """The normal form of a route, checked: two ways of writing the same one are the same setting."""
    if not isinstance(value, str):
        raise UsageError(explain(what, shown(value), _ALLOWED))
    return str(Route.parse(value, what))
