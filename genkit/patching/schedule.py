"""Where and when a method applies: explicit half-open ranges over layers, steps and heads, and names of branches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, explain

_FORMS = "None (all), a number, a half-open range such as '10:-2' or slice(10, -2), or a list of these ('0:2,5,-3:')"
_NUMBER = re.compile(r"-?\d+")
_RANGE = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?")


@dataclass(frozen=True)
class Span:
    """One half-open range. ``stop=None`` means up to the end; negative ends count from the end."""

    start: int
    stop: int | None

    def __str__(self) -> str:
        if self.stop is not None and self.stop == self.start + 1:
            return str(self.start)
        if self.start == -1 and self.stop is None:
            return "-1"
        return f"{self.start or ''}:{'' if self.stop is None else self.stop}"

    @property
    def backward(self) -> bool:
        """Whether it ends before it begins, whatever the count is."""
        return self.stop is not None and (self.stop < 0) == (self.start < 0) and self.stop < self.start

    def before(self, other: Span) -> bool:
        """Whether this range certainly ends where the other begins or earlier, whatever the count is."""
        if self.stop is None:
            return False
        return (self.stop < 0) == (other.start < 0) and self.stop <= other.start


def _number(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(explain(what, value, _FORMS))
    return value


def _single(value: int) -> Span:
    return Span(value, None if value == -1 else value + 1)


def _from_text(what: str, text: str) -> tuple[Span, ...]:
    spans = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        found = _RANGE.fullmatch(piece)
        if found is not None:
            spans.append(Span(int(found[1] or 0), None if found[2] is None else int(found[2])))
        elif _NUMBER.fullmatch(piece) is not None:
            spans.append(_single(int(piece)))
        else:
            raise UsageError(explain(what, text, _FORMS))
    return tuple(spans)


def parse_spans(what: str, value: Any) -> tuple[Span, ...] | None:
    """Normalise any accepted form; None stands for "everything", an empty tuple for "nothing"."""
    if value is None:
        return None
    if isinstance(value, Span):
        return (value,)
    if isinstance(value, str):
        return _from_text(what, value)
    if isinstance(value, (slice, range)):
        if value.step not in (None, 1):
            raise UsageError(f"{what}: ranges have no stride, got {value!r}; list the numbers instead")
        start = 0 if value.start is None else _number(what, value.start)
        return (Span(start, None if value.stop is None else _number(what, value.stop)),)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        spans: list[Span] = []
        for part in value:
            if part is None:
                raise UsageError(explain(what, value, _FORMS))
            spans.extend(parse_spans(what, part) or ())
        return tuple(spans)
    return (_single(_number(what, value)),)


def resolve(what: str, spans: tuple[Span, ...] | None, count: int) -> frozenset[int]:
    """The numbers that ``spans`` covers out of ``count``. Nothing is clipped: a range that does not fit raises."""
    if spans is None:
        return frozenset(range(count))
    covered: set[int] = set()
    for span in spans:
        start = span.start + count if span.start < 0 else span.start
        stop = count if span.stop is None else span.stop + count if span.stop < 0 else span.stop
        if not 0 <= start <= stop <= count:
            raise UsageError(
                f"schedule {what}={span}: there are {count} {what}, so this range would be {start}:{stop}; "
                f"use ends between {-count} and {count}, the first not after the second"
            )
        covered.update(range(start, stop))
    return frozenset(covered)


def _disjoint(mine: tuple[Span, ...] | None, other: tuple[Span, ...] | None) -> bool:
    if mine == () or other == ():
        return True
    if mine is None or other is None:
        return False
    return all(a.before(b) or b.before(a) for a in mine for b in other)


def _text(spans: tuple[Span, ...] | None) -> str:
    if spans is None:
        return "all"
    return ",".join(map(str, spans)) if spans else "none"


@dataclass(frozen=True, init=False)
class Schedule:
    """Which layers, sampling steps, branches and heads a method applies to. The rest runs the model's own attention.

    Ranges are half-open, negative ends count from the end, and nothing is clipped: a range that does not fit the
    actual count raises :class:`UsageError` with that count. ``Schedule(layers="1:", steps="10:-2")`` keeps the first
    layer and the first ten and last two steps as they are.

    Args:
        layers: layer indices per role (as ``PatchHandle.describe()`` numbers them). None = all, "" or [] = none.
        steps: sampling steps as the progress bar counts them. Negative ends need the number of steps, which a
            pipeline tells; a bare denoiser needs ``total_steps`` in :func:`genkit.patch`.
        branches: name or names the pipeline announces for its calls ("cond", "uncond", "cond_uncond"); None = all.
        heads: query heads; heads outside run dense and are merged back. Costs one extra dense call for them.

    Raises:
        UsageError: a form that is none of number, range, text or list; a bool; a range that does not fit.
    """

    layers: tuple[Span, ...] | None
    steps: tuple[Span, ...] | None
    branches: frozenset[str] | None
    heads: tuple[Span, ...] | None

    def __init__(self, layers: Any = None, steps: Any = None, branches: Any = None, heads: Any = None):
        object.__setattr__(self, "layers", parse_spans("layers", layers))
        object.__setattr__(self, "steps", parse_spans("steps", steps))
        object.__setattr__(self, "branches", _branch_names(branches))
        object.__setattr__(self, "heads", parse_spans("heads", heads))

    @property
    def everything(self) -> bool:
        """Whether nothing is excluded."""
        return (self.layers, self.steps, self.branches, self.heads) == (None, None, None, None)

    def disjoint(self, other: Schedule) -> bool:
        """Whether two schedules certainly never cover the same call of the same layer.

        Judged by steps and branches, without knowing the number of steps; two head sets of one call always overlap.
        """
        if self.branches is not None and other.branches is not None and not self.branches & other.branches:
            return True
        return _disjoint(self.steps, other.steps)

    def to_dict(self) -> dict[str, str]:
        """The restricted parts as text, accepted again by the constructor."""
        parts = {"layers": self.layers, "steps": self.steps, "heads": self.heads}
        texts = {name: ",".join(map(str, spans)) for name, spans in parts.items() if spans is not None}
        if self.branches is not None:
            texts["branches"] = ",".join(sorted(self.branches))
        return texts

    def __str__(self) -> str:
        if self.everything:
            return "everywhere"
        parts = [
            f"{name} {_text(getattr(self, name))}"
            for name in ("layers", "steps", "heads")
            if getattr(self, name) is not None
        ]
        if self.branches is not None:
            parts.append(f"branches {', '.join(sorted(self.branches)) or 'none'}")
        return "; ".join(parts)


def _branch_names(value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset(filter(None, (part.strip() for part in value.split(","))))
    if isinstance(value, Iterable):
        names = list(value)
        if all(isinstance(name, str) and name for name in names):
            return frozenset(names)
    raise UsageError(explain("branches", value, "None (all), a name such as 'cond', or a list of names"))
