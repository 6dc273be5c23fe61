"""The rows of a batch by name: which role every row of a denoiser call plays, and which half of guidance it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genkit.errors import UsageError, counted, explain


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Args:
        role: its name, for instance ``"source"``, ``"target"``, ``"layout"``, ``"reference-1"``.
        conditional: True for the half with the prompt, False for the unconditional half of guidance.
    """

    role: str
    conditional: bool = True


@dataclass(frozen=True)
class Rows:
    """The rows of one denoiser call, in the order of the batch.

    Rules of a control address rows by role and never by number, so that a pipeline may leave out rows it does not need.
    A role may stand several times in one half (several pictures edited at once): its rows are then taken in order.

    Example:
        >>> rows = Rows.of("source", "target", "layout", guided=True)
        >>> rows.index("target"), rows.index("target", conditional=True)
        ((1, 4), (4,))
        >>> Rows.of("source", "target", guided=("target",)).index("source", conditional=False)
        ()
        >>> rows.half(conditional=False).roles
        ('source', 'target', 'layout')
    """

    entries: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise UsageError("rows: a denoiser call has at least one row, got none")

    @classmethod
    def of(cls, *roles: str, guided: bool | Sequence[str] = True) -> Rows:
        """Unconditional rows first, then conditional ones: the order of Diffusers' pipelines.

        Args:
            roles: names in the order of the batch; may repeat.
            guided: True = every role has an unconditional row too; False = conditional rows only; or the names of the
                roles that have one (a row of guidance scale 1 needs none).
        """
        for role in roles:
            if not isinstance(role, str) or not role:
                raise UsageError(explain("role of a row", role, "a name such as 'target'"))
        chosen = (roles if guided else ()) if isinstance(guided, bool) else tuple(guided)
        for role in chosen:
            if role not in roles:
                raise UsageError(explain("guided role", role, list(dict.fromkeys(roles))))
        unconditional = [Row(role, False) for role in roles if role in chosen]
        return cls((*unconditional, *(Row(role) for role in roles)))

    @classmethod
    def of_call(cls, batch: int, branch: str | None, prompts: int, role: str = "image") -> Rows:
        """The rows of a stock pipeline's call, all of one role.

        Args:
            batch: rows of the call.
            branch: what the pipeline announces: ``"cond"``, ``"uncond"``, ... or None.
            prompts: rows of one half: prompts times pictures per prompt. A call of twice as many rows has the
                unconditional half first; a call of as many rows is conditional unless it is announced as "uncond"
                (calls for perturbed guidance, "uncond_stg", read the prompt).

        Raises:
            UsageError: any other number of rows.
        """
        if batch == 2 * prompts and branch in (None, "cond_uncond"):
            return cls((*[Row(role, False)] * prompts, *[Row(role)] * prompts))
        if batch == prompts:
            return cls(tuple([Row(role, branch != "uncond")] * prompts))
        raise UsageError(
            f"a denoiser call of {counted(batch, 'row')} (announced as {branch}) does not fit "
            f"{counted(prompts, 'prompt')}: expected "
            f"{prompts}, or {2 * prompts} with the unconditional half first; say what the rows are by control.begin"
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role once, in the order of first appearance."""
        return tuple(dict.fromkeys(row.role for row in self.entries))

    def index(self, role: str, conditional: bool | None = None) -> tuple[int, ...]:
        """Numbers of a role's rows in the batch; empty when the role has no row of that kind.

        Args:
            role: the name. conditional: only this half; None = both.

        Raises:
            UsageError: a role that no row has; not of a call of the other half alone, which may lack roles.
        """
        if role not in self.roles and any(conditional in (None, row.conditional) for row in self.entries):
            raise UsageError(explain("role of a row", role, list(self.roles)))
        return tuple(
            number
            for number, row in enumerate(self.entries)
            if row.role == role and conditional in (None, row.conditional)
        )

    def has(self, role: str) -> bool:
        """Whether some row has this role."""
        return role in self.roles

    def half(self, conditional: bool) -> Rows:
        """The rows of one half, for models that are called once per half (Wan)."""
        return Rows(tuple(row for row in self.entries if row.conditional is conditional))

    def pairs(self, of: str, into: str, conditional: bool | None = None) -> tuple[tuple[int, int], ...]:
        """(from, to) for every row of ``into``, within each half: one row of ``of`` serves all, several go in order.

        Raises:
            UsageError: a half that has rows of ``into`` and none of ``of``, or numbers that do not match.
        """
        found: list[tuple[int, int]] = []
        for half in (False, True):
            if conditional not in (None, half):
                continue
            givers, takers = self.index(of, half), self.index(into, half)
            if not takers:
                continue
            if len(givers) not in (1, len(takers)):
                name = "conditional" if half else "unconditional"
                raise UsageError(
                    f"rows: {len(takers)} {name} rows of {into!r} cannot take from {len(givers)} of {of!r}: there must "
                    f"be one, or as many; restrict the rule by Where(conditional=True), or run the missing rows"
                )
            found += zip(givers * (len(takers) // len(givers)), takers, strict=True)
        return tuple(found)
