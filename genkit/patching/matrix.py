"""Which method fits which family, computed from the methods' own refusals; nothing here is a list kept by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.attention.site import among
from genkit.errors import UsageError
from genkit.families.base import Family
from genkit.families.lookup import records
from genkit.patching.targets import role_reason


@dataclass(frozen=True)
class Row:
    """A method as the matrix lists it.

    Args:
        method: registered name.
        settings: the settings that make this row differ from the method's default; a method lists such rows in its
            class attribute ``variants``.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={str(value).lower()}" for key, value in self.settings.items())
        return f"{self.method} ({given})" if given else self.method

    def build(self, **more: Any) -> Method:
        """The method with the row's settings and more."""
        return registry.build(self.method, {**self.settings, **more})


@dataclass(frozen=True)
class Cell:
    """One method on one family.

    Args:
        row: the method and its settings.
        family: name of the family.
        roles: kinds of attention it serves there; empty = it is refused.
        reasons: why it leaves the other kinds alone, by role; kinds the method is not for at all are left out, unless
            the family has nothing else.
    """

    row: Row
    family: str
    roles: tuple[str, ...]
    reasons: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether :func:`genkit.patch` accepts the pair."""
        return bool(self.roles)

    @property
    def reason(self) -> str:
        """Why nothing fits, in one line; empty when something does."""
        return "" if self.fits else "; ".join(dict.fromkeys(self.reasons.values()))


def rows(method: str | None = None) -> list[Row]:
    """The rows of the matrix: every registered method (or one) with its variants."""
    found = []
    for name in registry.usable() if method is None else [method]:
        found += [Row(name, dict(settings)) for settings in getattr(registry.method_class(name), "variants", ({},))]
    return found


def matrix(method: str | None = None) -> list[Cell]:
    """Every method (or one) on every family, row by row in the order of :func:`rows` and the families' records."""
    return [_cell(row, family) for row in rows(method) for family in records()]


def _cell(row: Row, family: Family) -> Cell:
    try:
        method = row.build()
    except UsageError as error:
        return Cell(row, family.name, (), dict.fromkeys(family.roles, str(error)))
    reasons = {role: role_reason(method, role, family) for role in family.roles}
    roles = tuple(role for role, reason in reasons.items() if reason is None)
    refused = {role: why for role, why in reasons.items() if why is not None}
    told = {role: why for role, why in {**family.unserved, **refused}.items() if among(role, method.roles)}
    return Cell(row, family.name, roles, told if roles or told else refused)
