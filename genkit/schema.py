"""Values from outside as what a type annotation promises: flags, configuration files, records, headers.

:func:`read` takes an annotation and a plain value (what JSON or YAML hold) and returns the typed value, or raises one
line that says where, what was given and what is allowed. Nothing is guessed: ``"3"`` is no number, 1 no switch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from genkit.errors import GenkitError, UsageError, explain

#: Characters of a number written as text; more can only be a mistake, and large powers of ten take very long.
NUMBER_LENGTH = 64
RULE = "rule"
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Rule:
    """What a value must keep beside its type: ``Annotated[int, Rule(low=1)]``, or a dataclass field's
    ``metadata={"rule": Rule(...)}``.

    Args:
        low, high: smallest and largest number, both allowed.
        choices: the only values.
        most: items of a list or mapping, characters of a text.
        says: the allowed values in words, in place of words made from the above.
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    most: int | None = None
    says: str | None = None

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type keeps the rule."""
        if self.choices and value not in self.choices:
            return False
        if self.most is not None and len(value) > self.most:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def words(self, kind: str) -> str:
        """The allowed values in words: ``"a whole number >= 1"``."""
        if self.says is not None:
            return self.says
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.most is not None:
            return f"{kind} of at most {self.most} {'characters' if kind == _NAMES[str] else 'items'}"
        if self.low is not None and self.high is not None:
            return f"{kind} from {_plain(self.low)} to {_plain(self.high)}"
        if self.high is not None:
            return f"{kind} <= {_plain(self.high)}"
        return kind if self.low is None else f"{kind} >= {_plain(self.low)}"


def open_keys(cls: type) -> type:
    """Decorator of a dataclass that describes a file of others, which may hold more than what is read of it."""
    cls.__open_keys__ = True
    return cls


def read(hint: Any, value: Any, what: str, error: type[GenkitError] = UsageError) -> Any:
    """A plain value as the type ``hint``.

    Args:
        hint: ``bool``, ``int``, ``float``, ``str``, ``Any``, a dataclass, ``X | None``, ``Literal``, ``list[X]``,
            ``tuple[X, ...]``, ``dict[str, X]``, ``Annotated[X, Rule(...)]``, inside each other as one likes. A float
            is finite; a number without a fraction is a whole number too. Keys that a dataclass does not have are
            refused unless it is marked by :func:`open_keys`.
        value: as JSON or YAML give it; a value that has the type already comes back equal.
        what: the thing's name, with which the message begins.
        error: the class of error to raise.

    Raises:
        UsageError or ``error``: "what, key.key[3]: got ..., allowed: ...".

    Example:
        >>> read(dict[str, list[int]], {"layers": [1, 2]}, "header")
        {'layers': [1, 2]}
    """
    return _Reader(what, error).read(hint, value, "", Rule())


def number(text: str, kind: type, what: str) -> int | float:
    """A number written as text.

    Args:
        text: digits; for a float with point and exponent.
        kind: int or float.
        what: its name in messages.

    Raises:
        UsageError: no number, not finite, or written with more than :data:`NUMBER_LENGTH` characters.
    """
    plain = text.strip()
    try:
        value = kind(plain) if len(plain) <= NUMBER_LENGTH and "_" not in plain else None
    except ValueError:
        value = None
    if value is None or (kind is float and not math.isfinite(value)):
        raise UsageError(explain(what, text, _NAMES[kind]))
    return value


def _type_of(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass, evaluated, with what ``Annotated`` adds."""
    return typing.get_type_hints(cls, include_extras=True)


def kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation names, without None, ``Annotated`` and what containers hold."""
    if typing.get_origin(hint) is typing.Annotated:
        return kinds(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) if part is not type(None) for kind in kinds(part))
    return (typing.get_origin(hint) or hint,)


class _Reader:
    """One call of :func:`read`: where it is, and how it complains."""

    def __init__(self, what: str, error: type[GenkitError]):
        self.what, self.error = what, error

    def fail(self, path: str, value: Any, allowed: Any) -> typing.NoReturn:
        raise self.error(explain(f"{self.what}, {path.lstrip('.')}" if path else self.what, value, allowed))

    def read(self, hint: Any, value: Any, path: str, rule: Rule) -> Any:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self.read(inner[0], value, path, next((each for each in inner[1:] if isinstance(each, Rule)), rule))
        if origin in (typing.Union, types.UnionType):
            return self.one_of(inner, value, path, rule)
        if origin is typing.Literal:
            return value if any(value == each and type(value) is type(each) for each in inner) else (
                self.fail(path, value, inner))  # fmt: skip
        if dataclasses.is_dataclass(hint):
            return self.record(hint, value, path)
        if origin in (dict, Mapping) or hint is dict:
            return self.mapping(inner or (str, Any), value, path, rule)
        if origin in (list, tuple) or hint in (list, tuple):
            return self.items(origin or hint, inner[0] if inner else Any, value, path, rule)
        if hint is Any:
            return value
        return self.leaf(hint, value, path, rule)

    def one_of(self, hints: tuple[Any, ...], value: Any, path: str, rule: Rule) -> Any:
        if value is None and type(None) in hints:
            return None
        others = [hint for hint in hints if hint is not type(None)]
        # A float stays one where whole numbers are allowed besides: 2.0 is not written as 2.
        first = sorted(others, key=lambda hint: _type_of(hint) is not type(value))
        for hint in first[:-1]:
            try:
                return _Reader("", _Other).read(hint, value, path, rule)
            except _Other:
                continue
        if len(others) == 1:
            return self.read(others[0], value, path, rule)
        try:
            return _Reader("", _Other).read(first[-1], value, path, rule)
        except _Other:
            self.fail(path, value, " or ".join(_words(hint, rule) for hint in others))

    def leaf(self, kind: type, value: Any, path: str, rule: Rule) -> Any:
        """A switch, number or text."""
        is_bool = isinstance(value, bool)
        if kind in (int, float) and isinstance(value, (int, float)) and not is_bool:
            # Not every whole number fits a float, and no infinite float is a whole number.
            finite = value if isinstance(value, int) and kind is int else _finite(value)
            right = finite is not None and (kind is float or finite == int(finite))
            value = kind(finite) if right else value
        else:
            right = isinstance(value, kind) and is_bool == (kind is bool)
        if not right or not rule.allows(value):
            self.fail(path, value, _words(kind, rule))
        return value

    def items(self, origin: type, hint: Any, value: Any, path: str, rule: Rule) -> Any:
        if not isinstance(value, (list, tuple)) or not rule.allows(value):
            self.fail(path, value, rule.words("a list"))
        return origin(self.read(hint, each, f"{path}[{index}]", Rule()) for index, each in enumerate(value))

    def mapping(self, hints: tuple[Any, Any], value: Any, path: str, rule: Rule) -> dict[Any, Any]:
        if not isinstance(value, Mapping) or not rule.allows(value):
            self.fail(path, value, rule.words("names and values"))
        return {
            self.read(hints[0], key, path, Rule()): self.read(hints[1], each, f"{path}.{key}", Rule())
            for key, each in value.items()
        }

    def record(self, cls: type, value: Any, path: str) -> Any:
        """An object of a dataclass from names and values."""
        if isinstance(value, cls):
            return value
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        if not isinstance(value, Mapping):
            self.fail(path, value, f"names and values ({', '.join(fields)})")
        hints, found = hints_of(cls), {}
        for key, each in value.items():
            if key in fields:
                found[key] = self.read(hints[key], each, f"{path}.{key}", fields[key].metadata.get(RULE, Rule()))
            elif not getattr(cls, "__open_keys__", False):
                self.fail(f"{path}.key" if path else "key", key, list(fields))
        for name, field in fields.items():
            if name not in found and field.default is field.default_factory is dataclasses.MISSING:
                self.fail(path, list(value), f"a value for {name!r} among them")
        return cls(**found)


class _Other(GenkitError):
    """A value is not of one of several types; the next one is tried."""


def _finite(value: int | float) -> float | None:
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _words(hint: Any, rule: Rule) -> str:
    kind = kinds(hint)[0]
    return rule.words(_NAMES.get(kind, "a list" if kind in (list, tuple) else "names and values"))


def _plain(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
