"""What is visible to whom, and what a block-sparse operator executes: plans, mask specifications, biases."""

from genkit.kernels.plan.bias import LowRank, Quadratic, Table
from genkit.kernels.plan.block_plan import BlockPlan, Density, InverseLists, PooledKeys
from genkit.kernels.plan.mask_spec import ABSENT, ALL, FULL, NONE, PARTIAL, WINDOW, Rule

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
]
