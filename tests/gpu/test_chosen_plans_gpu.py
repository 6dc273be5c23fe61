"""Plans chosen on the device: nothing waits, a graph can be captured, and lists equal those of plain torch."""

from __future__ import annotations

import pytest
import torch

from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.block_lists import Budget, Kept, invert, list_mask, select
from genkit.kernels.token_select import token_select_attention

BUDGETS = (Budget(keep=7), Budget(mass=0.7, floor=2, cap=0.4))
TOKENS, HEADS = 4096, 4


@pytest.fixture
def no_waits():
    """Errors where the host would wait."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("columns", [20, 300, 5000])
def test_lists_equal_those_of_plain_torch(budget, columns):
    scores = torch.randn(2, HEADS, 70, columns, device="cuda").mul(4).round().div(4)
    scores = scores.softmax(-1) if budget.mass else scores
    kept = Kept.diagonal(70 * 64, columns * 64, 64, 64).with_columns([0]).to("cuda")
    ours, torchs = (select(scores, budget, kept, backend=name) for name in ("triton", "torch"))
    turned = [
        invert(lists, columns, placed=True, backend=name) for lists, name in ((ours, "triton"), (torchs, "torch"))
    ]
    for one, other in zip((*ours, *turned[0]), (*torchs, *turned[1]), strict=True):
        assert torch.equal(one, other)
    mask = scores > scores.mean()
    assert all(torch.equal(*both) for both in zip(list_mask(mask), list_mask(mask, backend="torch"), strict=True))


def inputs():
    return [
        torch.randn(1, TOKENS - 5, HEADS, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    ]


def chosen_call(budget, kept):
    blocks = kept.blocks

    def run(q, k, v, scores):
        scores = scores.softmax(-1) if budget.mass else scores
        plan = BlockPlan.from_scores(scores, budget, kept, TOKENS - 5, TOKENS - 5, block_q=128, block_k=64)
        out, _ = block_sparse_attention(q, k, v, plan, backend="triton")
        return out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return run, torch.randn(1, HEADS, TOKENS // 128, blocks, device="cuda")


def selected_call(budget, kept):
    blocks = TOKENS // 256
    own = torch.arange(TOKENS - 5) // 256
    always = Kept.of(own, own + 1, blocks).to("cuda")
    edges = [*range(0, TOKENS - 5, 256), TOKENS - 5]

    def run(q, k, v, scores):
        lists = select(scores.softmax(-1) if budget.mass else scores, budget, always)
        out, _ = token_select_attention(q, k, v, lists, edges, most=budget.bounds(blocks)[1], backend="triton")
        return out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return run, torch.randn(1, HEADS, TOKENS - 5, blocks, device="cuda")


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("call", [chosen_call, selected_call])
def test_nothing_waits_with_gradients_and_a_graph_replays_it(call, budget, request):
    kept = Kept.diagonal(TOKENS - 5, TOKENS - 5, 128, 64).to("cuda")
    (run, scores), tensors = call(budget, kept), inputs()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(*tensors, scores)  # kernels are compiled, tables of lengths are moved
    torch.cuda.current_stream().wait_stream(stream)
    request.getfixturevalue("no_waits")
    wanted = run(*tensors, scores)
    torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(*tensors, scores)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    scores.copy_(torch.randn_like(scores))  # another choice in the same graph
    wanted = run(*tensors, scores)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
