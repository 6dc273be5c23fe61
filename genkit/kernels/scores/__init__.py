"""Which key blocks matter to a query block: scores by pooling or sampling, and selection under a budget.

Seeded and gradient-free; plain torch, but for the block means, which have a Triton form. The result is a dense block
mask (B, H, Mq, Mk), or lists, that the plan builder of the block-sparse operator takes. The same selection must serve
forward and backward: compute it once.
"""

from genkit.kernels.scores.estimate import (
    antidiagonal_scores,
    block_mass,
    pooled_scores,
    sampled_scores,
)
from genkit.kernels.scores.pool import pool_backends, pool_blocks, pool_why_not
from genkit.kernels.scores.select import (
    block_lists,
    own_blocks,
    select_counts,
    select_threshold,
    select_top_k,
    select_top_p,
)

__all__ = [
    "antidiagonal_scores",
    "block_lists",
    "block_mass",
    "own_blocks",
    "pool_backends",
    "pool_blocks",
    "pool_why_not",
    "pooled_scores",
    "sampled_scores",
    "select_counts",
    "select_threshold",
    "select_top_k",
    "select_top_p",
]
