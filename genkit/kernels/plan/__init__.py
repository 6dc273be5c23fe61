"""What is visible to whom, and what a block-sparse operator executes: plans, mask specifications, biases."""

from genkit.kernels.plan.bias import LowRank, Quadratic, Table
from genkit.kernels.plan.bit_tiles import BitTiles
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.density import Density
from genkit.kernels.plan.lists import InverseLists
from genkit.kernels.plan.mask_spec import ABSENT, ALL, FULL, NONE, PARTIAL, WINDOW, Rule
from genkit.kernels.plan.tables import PlanTables, PooledKeys

__all__ = [
    "ABSENT",
    "ALL",
    "FULL",
    "NONE",
    "PARTIAL",
    "WINDOW",
    "BitTiles",
    "BlockPlan",
    "Density",
    "InverseLists",
    "LowRank",
    "PlanTables",
    "PooledKeys",
    "Quadratic",
    "Rule",
    "Table",
]
