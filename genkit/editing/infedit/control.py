"""Unified attention control: which branch attends with whose queries, keys, values and maps, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from genkit.control import Refine, Rule, Take, Where
from genkit.control.alignment import Alignment
from genkit.editing.infedit.sampler import LAYOUT, SOURCE, TARGET

_SLIP = 1e-9


def early_steps(share: float, steps: int) -> int:
    """Steps ``i`` with ``(i + 1) / steps < share``: those of the early phase of self-attention."""
    return max(0, math.ceil(share * steps - _SLIP) - 1) if share <= 1 else steps


def refined_steps(share: float, steps: int) -> int:
    """Steps ``i`` with ``(i + 1) / steps <= share``: those whose cross-attention is refined."""
    return min(steps, math.floor(share * steps + _SLIP))


@dataclass(frozen=True)
class Plan:
    """When the layout branch is a branch of its own, and the rules of the run.

    While self-attention is in its early phase the layout is the source: the same prompt, latents, queries, keys and
    values. Its rows are computed from :attr:`begins` on only, and before that the source stands for it.

    Args:
        rules: for branches "source", "target" and, from ``begins`` on, "layout".
        begins: first step with a layout of its own; ``steps`` where nothing reads one.
        steps: of the run.
    """

    rules: tuple[Rule, ...]
    begins: int
    steps: int

    @property
    def reads(self) -> tuple[tuple[str, str | None], ...]:
        """Branches that are the layout, each with its steps."""
        found: list[tuple[str, str | None]] = []
        if self.begins:
            found.append((SOURCE, f"0:{self.begins}"))
        if self.begins < self.steps:
            found.append((LAYOUT, f"{self.begins}:{self.steps}"))
        return tuple(found)


def unified_control(
    alignment: Alignment,
    steps: int,
    *,
    cross: float,
    self_: float,
    inject: bool = True,
    blends: bool = False,
    settled: int = 0,
) -> Plan:
    """The rules of unified attention control.

    Self-attention: in the early phase the layout takes queries, keys and values of the source, and the target its
    attention map; later the layout asks with the target's queries what the source has. Cross-attention: words that both
    prompts share keep the layout's maps in the target.

    Args:
        alignment: of the prompts' tokens.
        steps: of the run.
        cross: share of the steps in which maps are refined.
        self_: share of the early phase; above 1 it never ends.
        inject: the target takes part in the early phase (as in the published code and its defaults).
        blends: the layout is needed in all later steps, since the target is blended with it.
        settled: first step in which maps are refined.
    """
    early, refined = early_steps(self_, steps), refined_steps(cross, steps)
    begins = early if blends or early < refined else steps
    plan = Plan((), begins, steps)
    found: list[Rule] = []
    if early and inject:
        found.append(Take("qk", SOURCE, TARGET, where=Where(steps=f"0:{early}")))
    if begins < steps:
        where = Where(steps=f"{begins}:{steps}")
        found += [Take("kv", SOURCE, LAYOUT, where=where), Take("q", TARGET, LAYOUT, where=where)]
    for role, first, last in ((SOURCE, settled, min(begins, refined)), (LAYOUT, max(begins, settled), refined)):
        if first < last:
            where = Where(steps=f"{first}:{last}", conditional=True)
            found.append(Refine(of=role, into=TARGET, alignment=alignment, where=where))
    return replace(plan, rules=tuple(found))
