"""The frame of data-dependent methods: whatever the grid's own rule, the rest of the sequence is met exactly."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import Permutation, attend_grid, outside
from genkit.attention.site import Site
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.layout import Segment, TokenLayout

AROUND = TokenLayout(
    (2, 3, 4), (Segment("text", 5), Segment("grid", 24), Segment("reference", 0), Segment("keyframe", 3))
)
LAYOUTS = {"grid alone": TokenLayout.of_grid(2, 3, 4), "text behind": TokenLayout.of_grid(2, 3, 4, text=6),
           "text before, keyframes behind": AROUND}  # fmt: skip


def dense(q, k, v):
    return block_sparse_attention(q, k, v, BlockPlan.dense(q.shape[1], k.shape[1]))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_dense_run_on_the_grid_is_dense_attention_of_the_sequence(layout, hidden, permuted):
    q, k, v = tokens(layout)
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    if hidden and layout.text_span:
        low, high = layout.text_span
        visible[0, low : high - 3], visible[1, high - 1] = False, False
    site = Site.of_layout(layout, heads=2, key_mask=visible if hidden else None)
    order = torch.randperm(layout.grid_length, generator=torch.Generator().manual_seed(0))
    out = attend_grid(q, k, v, site, PatchCache(), dense, Permutation(order) if permuted else None)
    pairs = visible[:, None, None].expand(-1, 2, layout.length, -1)
    torch.testing.assert_close(out.double(), attention_over(q, k, v, pairs), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_run_without_log_sum_exp_keeps_the_grid_to_itself(layout):
    q, k, v = tokens(layout)
    out = attend_grid(q, k, v, Site.of_layout(layout, heads=2), PatchCache(), lambda *x: (dense(*x)[0], None))
    pairs = torch.ones(layout.length, layout.length, dtype=torch.bool)
    start, stop = layout.grid_span
    pairs[start:stop, :start] = pairs[start:stop, stop:] = False
    torch.testing.assert_close(out.double(), attention_over(q, k, v, pairs), atol=3e-6, rtol=1e-5)


def test_a_run_gets_the_grid_in_the_order_it_asked_for_and_may_decline():
    layout = AROUND
    q, k, v = tokens(layout)
    order = torch.arange(24).flip(0)
    seen = []
    out = attend_grid(
        q, k, v, Site.of_layout(layout, heads=2), PatchCache(), lambda *x: seen.append(x), Permutation(order)
    )
    assert out is None
    for x, whole in zip(seen[0], (q, k, v), strict=True):
        assert torch.equal(x, whole[:, 5:29].flip(1))
    assert torch.equal(outside(q, Site.of_layout(layout)), torch.cat([q[:, :5], q[:, 29:]], 1))
    assert Permutation(torch.arange(24)).identity and not Permutation(order).identity
