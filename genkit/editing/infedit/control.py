"""Unified attention control: which branch attends with whose queries, keys, values and maps, and when."""

from __future__ import annotations

import math

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


def unified_control(alignment: Alignment, steps: int, *, cross: float, self_: float, inject: bool = True) -> list[Rule]:
    """The rules for branches "source", "target" and "layout".

    Self-attention: in the early phase the layout takes queries, keys and values of the source, and the target its
    attention map; later the layout asks with the target's queries what the source has. Cross-attention: words that both
    prompts share keep the layout's maps in the target.

    Args:
        alignment: of the prompts' tokens.
        steps: of the run.
        cross: share of the steps in which maps are refined.
        self_: share of the early phase; above 1 it never ends.
        inject: the target takes part in the early phase (as in the published code and its defaults).
    """
    early, refined = early_steps(self_, steps), refined_steps(cross, steps)
    found: list[Rule] = []
    if early:
        where = Where(steps=f"0:{early}")
        found.append(Take("qkv", SOURCE, LAYOUT, where=where))
        if inject:
            found.append(Take("qk", SOURCE, TARGET, where=where))
    if early < steps:
        where = Where(steps=f"{early}:")
        found += [Take("kv", SOURCE, LAYOUT, where=where), Take("q", TARGET, LAYOUT, where=where)]
    if refined:
        where = Where(steps=f"0:{refined}", conditional=True)
        found.append(Refine(of=LAYOUT, into=TARGET, alignment=alignment, where=where))
    return found
