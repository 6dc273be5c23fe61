"""Attention operators on plain tensors. They know no model and no pipeline."""

from __future__ import annotations

from genkit.kernels.block_sparse import (
    ALL,
    NONE,
    WINDOW,
    BlockPlan,
    Density,
    LowRank,
    Quadratic,
    Rule,
    Table,
    backends,
    block_sparse_attention,
    why_not,
)
from genkit.kernels.merge import merge
from genkit.kernels.permutation import TokenOrder

__all__ = [
    "ALL",
    "NONE",
    "WINDOW",
    "BlockPlan",
    "Density",
    "LowRank",
    "Quadratic",
    "Rule",
    "Table",
    "TokenOrder",
    "backends",
    "block_sparse_attention",
    "merge",
    "why_not",
]
