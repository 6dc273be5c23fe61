"""From scores to a plan to gradients without waiting for a device: equal to masked attention, and nobody looks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from attention_helpers import attention_over

from genkit.attention.block_select import BlockSelect
from genkit.attention.block_select.selectors import SELECTORS
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import BlockChoice, attend_grid
from genkit.attention.mixture_of_block import MixtureOfBlock
from genkit.attention.pyramid import Pyramid
from genkit.attention.site import Site
from genkit.kernels import BlockPlan, TokenOrder, block_sparse_attention
from genkit.kernels.block_lists import BlockLists, Budget, Kept
from genkit.kernels.block_sparse.impl.triton import backend as block_triton
from genkit.kernels.block_sparse.impl.triton import launch
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile
from genkit.kernels.token_select import token_select_attention
from genkit.kernels.token_select.impl.triton import backend as token_triton
from genkit.layout import TokenLayout

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from syncs import Syncs

CHOICES = {
    "top-k": BlockChoice(Budget(keep=3), 16, 8),
    "share": BlockChoice(Budget(keep=0.3), 16, 8, beside=1),
    "top-p": BlockChoice(Budget(mass=0.6, floor=2, cap=0.5), 16, 8, sinks=2),
}


def scores_of(choice, n_q, n_k, seed=0, heads=2):
    shape = 2, heads, -(-n_q // choice.block_q), -(-n_k // choice.block_k)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).round() / 2
    return scores.softmax(-1) if choice.budget.mass is not None else scores


def tensors(n_q, n_k, seed=1, dtype=torch.float64, heads=2, key_heads=1):
    g = torch.Generator().manual_seed(seed)
    shapes = (n_q, heads), (n_k, key_heads), (n_k, key_heads)
    return [torch.randn(2, n, h, 8, generator=g, dtype=dtype).requires_grad_() for n, h in shapes]


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("n_q,n_k", [(64, 64), (70, 70), (50, 91)])
def test_chosen_blocks_are_masked_attention_in_values_and_gradients(choice, n_q, n_k):
    q, k, v = tensors(n_q, n_k)
    cache = PatchCache()
    plan = choice.plan(scores_of(choice, n_q, n_k), n_q, n_k, cache)
    blocks = plan.states() != 0
    assert ((plan.full_count + plan.partial_count) > 0).all()
    assert (blocks | ~choice.always(n_q, n_k).mask()).all()
    pairs = blocks.repeat_interleave(choice.block_q, 2).repeat_interleave(choice.block_k, 3)[:, :, :n_q, :n_k]
    want = attention_over(q, k, v, pairs)
    out, _ = block_sparse_attention(q, k, v, plan)
    torch.testing.assert_close(out, want, atol=1e-12, rtol=0)
    for ours, exact in zip(*(torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in (out, want)), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)
    again = choice.plan(scores_of(choice, n_q, n_k), n_q, n_k, cache)
    assert torch.equal(again.full_index, plan.full_index) and len(cache) == 1


def test_blocks_of_an_order_may_be_ragged_anywhere():
    order = TokenOrder.from_grid((5, 6, 7), (2, 3, 4))
    blocks = len(order.valid)
    scores = torch.randn(1, 2, blocks, blocks, generator=torch.Generator().manual_seed(2))
    kept = Kept.diagonal(blocks * order.block, blocks * order.block, order.block, order.block)
    plan = BlockPlan.from_scores(scores, Budget(keep=3), kept, 210, 210, order=order)
    mask = BlockPlan.from_dense_blocks(plan.states() != 0, 210, 210, order=order)
    assert torch.equal(plan.states(), mask.states()) and (plan.partial_count > 0).any()
    q, k, v = tensors(210, 210)
    for ours, exact in zip(*(block_sparse_attention(q, k, v, p) for p in (plan, mask)), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


def test_one_graph_holds_scores_plan_attention_and_gradients():
    choice, (q, k, v) = CHOICES["top-p"], tensors(70, 70, dtype=torch.float32)
    always, scores = choice.always(70, 70), scores_of(choice, 70, 70)

    def function(q, k, v, scores):
        plan = BlockPlan.from_scores(scores * 1, choice.budget, always, 70, 70, block_q=16, block_k=8)
        return block_sparse_attention(q, k, v, plan)[0].sin().sum()

    found = [
        torch.autograd.grad(run(q, k, v, scores), (q, k, v))
        for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function)
    ]
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-6, rtol=0)


# ---- who waits: on the meta device nothing has a value, and whoever asks for one fails ------------------------------


@pytest.fixture
def no_launches(monkeypatch):
    """The backends up to their kernels, which a device would run without being asked."""
    launched = []
    monkeypatch.setattr(launch.Launch, "run", lambda self: launched.append(self.kernel))
    from genkit.kernels.token_select.impl.triton import kernels

    class Kernel:
        def __getitem__(self, grid):
            assert all(isinstance(n, int) and n > 0 for n in grid)
            return lambda *args, **options: launched.append(grid)

    for name in ("forward", "merge", "dq", "sum", "dkv"):
        monkeypatch.setattr(kernels, f"{name}_kernel", Kernel())
    monkeypatch.setattr(token_triton, "matrix_unit", lambda device: "fours")
    monkeypatch.setattr(block_triton, "copies", lambda device: False)
    monkeypatch.setattr(block_triton, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(block_triton, "choose_tile", lambda *given: Tile(queries=64, keys=64, warps=4, stages=2))
    token_triton._edges.cache_clear()
    token_triton._key_tiles.cache_clear()
    yield launched
    token_triton._edges.cache_clear()
    token_triton._key_tiles.cache_clear()


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("tokens,key_heads", [(64 * 30, 4), (64 * 30 - 5, 2)])
def test_a_chosen_plan_with_gradients_never_waits(choice, tokens, key_heads, no_launches):
    q, k = meta(1, tokens, 4, 64), meta(1, tokens, key_heads, 64)
    scores = meta(1, 4, -(-tokens // choice.block_q), -(-tokens // choice.block_k), dtype=torch.float32)
    cache = PatchCache()
    choice.plan(scores, tokens, tokens, cache)  # what depends on lengths alone is made on the host and moved once
    with Syncs() as syncs:
        plan = choice.plan(scores, tokens, tokens, cache)
        out, lse = block_triton.forward(q, k, k, plan, 0.1, ())
        block_triton.backward(out, lse, q, k, k, out, lse, plan, 0.1, ())
    assert len(no_launches) == 4 and not syncs.found and syncs.every.total() > 10


@pytest.mark.parametrize("lists", [False, True])
def test_selection_by_tokens_with_gradients_never_waits(lists, no_launches, monkeypatch):
    monkeypatch.setattr(token_triton, "BUFFER_BYTES", 1 << 20)
    n, heads, blocks = 1000, 4, 9
    q, k = meta(2, n, heads, 64), meta(2, n, 2, 64)
    chosen = [meta(2, heads, n, blocks, dtype=torch.bool)]
    if lists:
        chosen = [meta(2, heads, n, dtype=torch.int32), meta(2, heads, n, 16, dtype=torch.int32)]
    starts = [*range(0, 900, 100), 1000]
    for _ in range(2):  # where blocks begin is moved once
        with Syncs() as syncs:
            out, lse = token_triton.forward(q, k, k, chosen, 3, starts, 0.1)
            token_triton.backward(out, lse, q, k, k, out, lse, chosen, 3, starts, 0.1)
    assert not syncs.found and syncs.every.total() > 10 and len(no_launches) > 8


@pytest.mark.parametrize("text", [0, 7])
@pytest.mark.parametrize(
    "method",
    [
        MixtureOfBlock(box=(2, 4, 4), cycle=(0, 0, 1)),
        MixtureOfBlock(temporal=2, cycle=(1, 0, 0), keep=2),
        MixtureOfBlock(box=(2, 4, 4), cycle=(0, 0, 1), select="threshold", scope="head"),
        MixtureOfBlock(box=(2, 4, 4), cycle=(0, 0, 1), select="topk", scope="all"),
    ],
    ids=str,
)
def test_mixture_of_block_with_gradients_never_waits(method, text, monkeypatch):
    layout = TokenLayout.of_grid(4, 8, 8, text=text)
    on_meta(monkeypatch)
    mask = torch.empty(2, layout.length, dtype=torch.bool, device="meta") if text else None
    site = Site.of_layout(layout, heads=4, key_mask=mask)
    x = torch.empty(2, layout.length, 4, 64, device="meta", requires_grad=True)
    cache = PatchCache("triton")
    for _ in range(2):  # tables of the layout are moved once
        with Syncs() as syncs:
            out = method.attend(x, x * 2, x * 3, site, cache)
            out.sum().backward()
    assert not syncs.found and syncs.every.total() > 10 and x.grad.shape == x.shape


SELECTIONS = [
    *({"score": name} for name in SELECTORS),
    *({"score": name, "top_p": 0.8} for name, selector in SELECTORS.items() if selector.masses),
    {"tail": 8},
    {"guard": 0.1},
]


PYRAMIDS = [{}, {"mode": "quantile"}, {"cap": (0.1, 0.1, 0.1)}, {"importance": "row_max", "crossing": False}]


@pytest.mark.parametrize(
    "method",
    [*(BlockSelect(block=64, **settings) for settings in SELECTIONS), *(Pyramid(**settings) for settings in PYRAMIDS)],
    ids=lambda method: method.describe(),
)
def test_methods_that_choose_blocks_with_gradients_never_wait(method, monkeypatch):
    layout = TokenLayout.of_grid(4, 9, 16, text=7)
    on_meta(monkeypatch)
    mask = torch.empty(1, layout.length, dtype=torch.bool, device="meta")
    site = Site.of_layout(layout, heads=4, key_mask=mask)
    x, cache = torch.empty(1, layout.length, 4, 64, device="meta", requires_grad=True), PatchCache("triton")
    for _ in range(2):  # tables of the layout are moved once
        with Syncs() as syncs:
            method.attend(x, x * 2, x * 3, site, cache).sum().backward()
    assert not syncs.found and syncs.every.total() > 20 and x.grad.shape == x.shape


def test_means_of_what_is_dropped_are_the_same_where_nobody_looks():
    g = torch.Generator().manual_seed(8)
    levels = torch.where(torch.rand(1, 2, 3, 5, generator=g) < 0.5, 1, 4).to(torch.int32)
    q, k, v = tensors(90, 150, heads=2, key_heads=2)
    found = []
    for factors in (None, (1, 4), (1, 2, 4)):
        plan = BlockPlan.from_levels(levels, 90, 150, block_q=32, block_k=32, check=False, factors=factors)
        found.append(block_sparse_attention(q, k, v, plan)[0])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=0)


def on_meta(monkeypatch):
    """Let the operators stand in for the Triton backends where nothing has a value."""
    for module in (block_triton, token_triton):
        monkeypatch.setattr(module, "triton_refuses", lambda *given: None)


def test_lists_and_a_mask_choose_the_same_blocks_everywhere():
    g = torch.Generator().manual_seed(5)
    layout, method = TokenLayout.of_grid(4, 8, 8), MixtureOfBlock(box=(2, 4, 4), cycle=(0, 0, 1), keep=3)
    from genkit.attention.mixture_of_block.method import _partition, _share
    from genkit.attention.mixture_of_block.select import block_means, gates, list_top_k

    part = _partition(method, layout.grid, "box")
    q, k, v = (
        torch.randn(2, layout.length, h, 8, generator=g, dtype=torch.float64).requires_grad_() for h in (4, 2, 2)
    )
    mask = method.select_blocks(q, k, part)
    lists = list_top_k(gates(q.detach(), block_means(k.detach(), part.block_of, part.own)), part.kept, 3)
    assert isinstance(lists, BlockLists) and (lists.count == 3).all()
    assert torch.equal(torch.zeros_like(mask).scatter_(-1, lists.index[..., :3].long(), True), mask)
    torch.testing.assert_close(_share(lists, part, layout), _share(mask, part, layout))
    found = []
    for chosen in (mask, lists):
        out, lse = token_select_attention(q, k, v, chosen, part.starts, most=3)
        found.append([out, lse, *torch.autograd.grad(out.sin().sum() + lse.sum(), (q, k, v))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_hidden_text_is_hidden_by_a_bias_as_by_a_rule(monkeypatch):
    layout = TokenLayout.of_grid(2, 4, 4, text=9)
    g = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(2, layout.length, 2, 8, generator=g) for _ in range(3))
    visible = torch.ones(2, layout.length, dtype=torch.bool)
    low, high = layout.text_span
    visible[0, low + 3 : high], visible[1, low:high] = False, False
    site = Site.of_layout(layout, heads=2, key_mask=visible)

    def run(q, k, v):
        return block_sparse_attention(q, k, v, BlockPlan.dense(q.shape[1], k.shape[1]))

    from genkit.attention import dynamic

    by_rule = attend_grid(q, k, v, site, PatchCache(), run)
    monkeypatch.setattr(dynamic, "on_host", lambda x: False)
    torch.testing.assert_close(attend_grid(q, k, v, site, PatchCache(), run), by_rule, atol=2e-6, rtol=0)
