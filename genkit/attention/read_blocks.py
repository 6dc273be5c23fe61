"""What a method read in a call, block by block: for methods that do something with the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genkit.attention.dynamic import Permutation
    from genkit.kernels import BlockPlan


@dataclass(frozen=True, eq=False)
class BlocksRead:
    """The blocks of keys that every block of queries read.

    Args:
        plan: what ran; None: everything was read.
        grid: whether the plan is of the grid's tokens alone, whose rows then also read everything outside the grid.
        permutation: with ``grid``: the order of the grid's tokens that the plan counts in; None: as they are.
    """

    plan: BlockPlan | None
    grid: bool = False
    permutation: Permutation | None = None
