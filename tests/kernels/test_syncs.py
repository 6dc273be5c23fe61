"""The counter of waits counts them: on operators, and on a plan made from a mask."""

from __future__ import annotations

import torch
from syncs import Syncs

from genkit.kernels import BlockPlan
from genkit.kernels.block_lists import Budget, Kept
from genkit.kernels.block_sparse.impl.triton.plan_tables import translate


def test_waits_are_counted_by_name_and_nothing_else_is():
    x = torch.arange(6.0)
    with Syncs() as syncs:
        float(x.sum()), x.nonzero(), x[x > 2], x.masked_select(x > 2), x.unique(), torch.equal(x, x)
        torch.repeat_interleave(torch.tensor([1, 2])), x.to("meta")
        (
            x[torch.tensor([1, 2])],
            torch.repeat_interleave(torch.tensor([1, 2]), output_size=3),
            x.topk(2),
            x.sort(),
            x + 1,
        )
    assert dict(syncs.found) == {
        "aten._local_scalar_dense.default": 1,
        "aten.nonzero.default": 1,
        "aten.index.Tensor": 1,
        "aten.masked_select.default": 1,
        "aten._unique2.default": 1,
        "aten.equal.default": 1,
        "aten.repeat_interleave.Tensor": 1,
        "cpu to meta": 1,
    }
    assert syncs.every.total() > syncs.found.total()


def test_a_plan_from_a_mask_waits_where_one_from_scores_does_not():
    scores, sizes = torch.randn(1, 2, 20, 40), {"block_q": 16, "block_k": 8}
    kept = Kept.diagonal(320, 320, **sizes)
    with Syncs() as waits:
        mask = torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, scores.topk(5).indices, True)
        plan = BlockPlan.from_dense_blocks(mask, 320, 320, **sizes)
        translate(plan, False), plan.inverse()
    with Syncs() as none:
        plan = BlockPlan.from_scores(scores, Budget(keep=5), kept, 320, 320, **sizes)
        translate(plan, False), translate(plan, True)
    assert waits.found.total() >= 9 and not none.found
