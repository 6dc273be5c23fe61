"""Which key blocks matter to a query block: scores by pooling or sampling, and selection under a budget.

Everything here is plain torch, seeded and gradient-free; the result is a dense block mask (B, H, Mq, Mk), or lists,
that the plan builder of the block-sparse operator takes. The same selection must serve forward and backward: compute it
once.
"""

from genkit.kernels.scores.estimate import (
    antidiagonal_scores,
    block_mass,
    pool_blocks,
    pooled_scores,
    sampled_scores,
)
from genkit.kernels.scores.select import (
    block_lists,
    own_blocks,
    select_threshold,
    select_top_k,
    select_top_p,
)

__all__ = [
    "antidiagonal_scores",
    "block_lists",
    "block_mass",
    "own_blocks",
    "pool_blocks",
    "pooled_scores",
    "sampled_scores",
    "select_threshold",
    "select_top_k",
    "select_top_p",
]
