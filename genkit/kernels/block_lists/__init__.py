"""Lists of key blocks made where the scores are: budgets, row selection, and lists per key block, without a look at the
device.
"""

from genkit.kernels.block_lists.api import backends, invert, list_mask, select, select_rows, why_not
from genkit.kernels.block_lists.budget import Budget, Kept
from genkit.kernels.block_lists.lists import BlockLists, Inverse, kept_bytes, rounded, working_bytes

__all__ = [
    "BlockLists",
    "Budget",
    "Inverse",
    "Kept",
    "backends",
    "invert",
    "kept_bytes",
    "list_mask",
    "rounded",
    "select",
    "select_rows",
    "why_not",
    "working_bytes",
]
