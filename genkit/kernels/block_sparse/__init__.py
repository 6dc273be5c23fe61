"""Block-sparse attention: the operator, and the plans and biases it takes."""

from __future__ import annotations

from genkit.kernels.block_sparse.api import backends, block_sparse_attention, why_not
from genkit.kernels.plan.bias import LowRank, Quadratic, Table
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.density import Density
from genkit.kernels.plan.lists import InverseLists
from genkit.kernels.plan.mask_spec import ABSENT, ALL, FULL, NONE, PARTIAL, WINDOW, Rule
from genkit.kernels.plan.tables import PooledKeys

__all__ = [
    "ABSENT",
    "ALL",
    "FULL",
    "NONE",
    "PARTIAL",
    "WINDOW",
    "BlockPlan",
    "Density",
    "InverseLists",
    "LowRank",
    "PooledKeys",
    "Quadratic",
    "Rule",
    "Table",
    "backends",
    "block_sparse_attention",
    "why_not",
]
