"""From what a caller gives to `genkit.patch` to a tuple of parts: method, schedule, roles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genkit.attention.method import Method
from genkit.attention.site import ROLES
from genkit.errors import UsageError, explain
from genkit.patching.schedule import Schedule

AUTO = "auto"


@dataclass(frozen=True)
class Part:
    """One method with its schedule and roles; several of them make a patch or a recipe.

    Args:
        method: the attention method.
        schedule: where and when it applies; None = everywhere, or the schedule given to :func:`genkit.patch`.
        roles: the roles it is put on; None = every role of the model it can serve.
    """

    method: Method
    schedule: Schedule | None = None
    roles: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise UsageError(explain("method", self.method, "an attention method such as genkit.Radial()"))
        check_schedule(self.schedule)
        object.__setattr__(self, "roles", as_roles(self.roles))

    @property
    def applied(self) -> Schedule:
        """The schedule that applies."""
        return Schedule() if self.schedule is None else self.schedule


def as_parts(method: Any, schedule: Schedule | None, roles: str | Iterable[str] | None) -> tuple[Part, ...]:
    """Parts of a method, a part, a list of these, or a recipe (anything with ``parts``).

    ``schedule`` and ``roles`` fill in for parts that have none of their own.
    """
    check_schedule(schedule)
    roles = as_roles(roles)
    given = getattr(method, "parts", method)
    entries = list(given) if isinstance(given, (list, tuple)) else [given]
    if not entries:
        raise UsageError("patch needs at least one attention method")
    parts = [entry if isinstance(entry, Part) else Part(entry) for entry in entries]
    return tuple(Part(part.method, part.schedule or schedule, part.roles or roles) for part in parts)


def check_recipe(method: Any, target: Any) -> None:
    """Let a recipe (anything with ``check_target``) refuse a model it was not made for."""
    check = getattr(method, "check_target", None)
    if check is not None:
        check(target)


def check_backend(backend: str) -> str:
    """The name of an operator backend, or UsageError with the valid ones."""
    from genkit.kernels import backends

    names = (AUTO, *backends())
    if backend not in names:
        raise UsageError(explain("backend", backend, names))
    return backend


def as_roles(roles: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Roles as a tuple; UsageError lists the valid ones."""
    if roles is None:
        return None
    given = tuple(part.strip() for part in roles.split(",")) if isinstance(roles, str) else tuple(roles)
    for role in given:
        if role not in ROLES:
            raise UsageError(explain("role", role, ROLES))
    return given


def check_schedule(schedule: Any) -> None:
    """UsageError unless it is a Schedule or None."""
    if schedule is not None and not isinstance(schedule, Schedule):
        raise UsageError(explain("schedule", schedule, "a genkit.Schedule, for instance Schedule(steps='10:-2')"))
