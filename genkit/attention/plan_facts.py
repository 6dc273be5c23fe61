"""What the blocks of a static plan are and what they cost, counted without running anything and without the device."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.attention.static import StaticMethod, any_plan
from genkit.layout import TokenLayout


@dataclass(frozen=True)
class PlanFacts:
    """A plan in numbers.

    Args:
        kind: of device it is for: ``"cpu"``, ``"cuda"``, ...
        arrangement: which tokens the blocks hold, in words; "" where they are runs of the sequence.
        block_q, block_k: tokens per block; None where the method runs dense.
        filled: share of the slots of query blocks that hold a token.
        visible: share of the token pairs that are visible. executed: share in visited blocks, padding included.
        partial: share of the visited blocks that are masked token by token.
    """

    kind: str
    arrangement: str
    block_q: int | None
    block_k: int | None
    filled: float
    visible: float
    executed: float
    partial: float

    @property
    def waste(self) -> float:
        """Executed over visible pairs; 1 is best."""
        return self.executed / self.visible

    def __str__(self) -> str:
        if self.block_q is None:
            return f"{self.kind}: dense attention"
        blocks = self.arrangement or f"blocks of {self.block_q} queries by {self.block_k} keys"
        return (
            f"{self.kind}: {blocks}; {self.executed:.1%} executed, {self.waste:.2f} x what is visible; query blocks "
            f"{self.filled:.0%} full; {self.partial:.0%} of the visited blocks partial"
        )


def plan_facts(method: StaticMethod, layout: TokenLayout, kind: str, heads: int = 1) -> PlanFacts:
    """The facts of the plan that a method makes of a layout for a kind of device, which need not be there.

    Args:
        heads: for methods whose heads see different pairs.
    """
    made = any_plan(method, layout, kind, None, *([heads] if method.by_head else []))
    plan, density = made.plan, made.density
    if plan is None:
        return PlanFacts(kind, "", None, None, 1.0, density.computed, density.executed, 0.0)
    partial, full = int(plan.partial_count.sum()), int(plan.full_count.sum())
    filled = int(plan.q_valid.sum()) / (plan.blocks_q * plan.block_q)
    words = method.arrangement(layout, kind)
    share = partial / max(1, partial + full)
    return PlanFacts(kind, words, plan.block_q, plan.block_k, filled, density.computed, density.executed, share)
