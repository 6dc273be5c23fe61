"""Blocks cut from walks in strips: the walk, the counting, the choice against all others, and what plans compute."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from attention_helpers import attention_over, tokens

from genkit.attention import strips as module
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.plan_facts import plan_facts
from genkit.attention.strips import KeyBlocks, QueryBlocks, StripChoice, candidates, choose_strips, cost, order_of
from genkit.attention.windows import AxisWindow, axis_table
from genkit.errors import UsageError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.permutation import Strips, TokenOrder
from genkit.layout import TokenLayout

WALKS = [
    ((3, 5, 4), Strips((None, 2, 1)), 1),
    ((3, 5, 7), Strips((2, None, 3)), 1),
    ((3, 5, 7), Strips((2, 3, None), even=False), 1),
    ((4, 5, 6), Strips((2, 2, None)), (1, 2, 3)),
    ((1, 7), Strips((1, None)), 2),
]


def walked(grid, strips, dilation):
    """The walk, coordinate by coordinate."""
    steps = (dilation,) * len(grid) if isinstance(dilation, int) else dilation
    groups = [[list(range(g, n, d)) for g in range(d)] for n, d in zip(grid, steps, strict=True)]
    cross = [axis for axis in range(len(grid)) if axis != strips.run]

    def pieces(axis):
        for group in groups[axis]:
            count = -(-len(group) // strips.sides[axis])
            for number in range(count):
                if strips.even:
                    yield [x for place, x in enumerate(group) if place * count // len(group) == number]
                else:
                    yield group[number * strips.sides[axis] : (number + 1) * strips.sides[axis]]

    rows = [[]]
    for axis in cross:
        parts, longer = list(pieces(axis)), []
        for row in rows:
            turned = parts if len(longer) // len(parts) % 2 == 0 else parts[::-1]
            longer += [[*row, part] for part in turned]
        rows = longer
    found, along = [], [x for group in groups[strips.run] for x in group]
    for number, row in enumerate(rows):
        for place in along if number % 2 == 0 else along[::-1]:
            inside = [[place]] * len(grid)
            for axis, part in zip(cross, row, strict=True):
                inside[axis] = part
            numbers = [sum(x * prod(grid[axis + 1 :]) for axis, x in enumerate(at)) for at in product(*inside)]
            found += sorted(numbers)
    return found


@pytest.mark.parametrize(("grid", "strips", "dilation"), WALKS)
def test_a_walk_meets_every_token_in_the_order_of_its_strips(grid, strips, dilation):
    assert strips.walk(grid, dilation).tolist() == walked(grid, strips, dilation)


def test_only_the_last_block_of_a_segment_has_padding():
    segments = [("text", 5), ("grid", 105)]
    order = TokenOrder.from_strips((3, 5, 7), Strips((None, 2, 3)), 16, segments)
    assert order.valid.tolist() == [5, *[16] * 6, 9]
    assert sorted(order.gather[order.gather >= 0].tolist()) == list(range(110))
    assert order.gather[16:32].tolist() == [5 + token for token in walked((3, 5, 7), Strips((None, 2, 3)), 1)[:16]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Strips((2, 3)), "one None"),
        (lambda: Strips((None, None)), "one None"),
        (lambda: Strips((None, 0)), ">= 1"),
        (lambda: Strips((None, 2)).walk((4,)), "each axis"),
        (lambda: TokenOrder.from_strips((4, 4), Strips((None, 2)), 0), "block must be"),
        (lambda: TokenOrder.from_strips((4, 4), Strips((None, 2)), 4, [("grid", 5)]), "its segment 5"),
    ],
)
def test_wrong_strips_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


WINDOWS = [
    {"size": ("all", 3, 5)},
    {"size": (2, 4, 6), "stride": (1, 2, 3)},
    {"size": (3, 3, 3), "dilation": (1, 2, 2)},
    {"size": (3, 5, 5), "causal": (True, False, False), "border": "clip"},
]


@pytest.mark.parametrize("settings", WINDOWS)
@pytest.mark.parametrize("query", [Strips((None, 2, 3)), Strips((2, 3, None), even=False), (2, 2, 4)])
def test_counts_are_those_of_the_plan(settings, query):
    layout = TokenLayout.of_grid(4, 7, 9)
    windows = Neighborhood(**settings).on(layout.grid)
    tables, key = windows.tables, Strips((1, None, 2))
    order, key_order = order_of(tables, query, 16), order_of(tables, key, 12)
    plan = BlockPlan.from_rule(windows.rule(layout), order=order, key_order=key_order)
    visited, partial = QueryBlocks.of(tables, query, 16).visits(KeyBlocks.of(tables, key, 12))
    assert visited == int((plan.full_count + plan.partial_count).sum())
    assert partial == int(plan.partial_count.sum())


def every_choice(tables):
    """The cost of all pairs of walks."""
    grid = [table.window.length for table in tables]
    rows = [QueryBlocks.of(tables, walk, module.BLOCK_Q) for walk in candidates(grid, module.BLOCK_Q)]
    for block in module.BLOCKS_K:
        for walk in candidates(grid, block):
            keys = KeyBlocks.of(tables, walk, block)
            yield from (cost(*row.visits(keys), module.BLOCK_Q, block) for row in rows)


@pytest.mark.parametrize(
    "axes",
    [
        ((1, 1), (24, 9), (20, 7)),
        ((1, 1), (30, 12, 4), (32, 16, 4)),
        ((3, 3), (6, 3), (9, 5)),
        ((5, 3), (6, 3), (6, 6)),
    ],
)
def test_the_choice_is_the_best_of_all(axes):
    tables = tuple(axis_table(AxisWindow(*axis)) for axis in axes)
    chosen = choose_strips(tables)
    keys = KeyBlocks.of(tables, chosen.key, chosen.block_k)
    visits = QueryBlocks.of(tables, chosen.query, chosen.block_q).visits(keys)
    assert cost(*visits, chosen.block_q, chosen.block_k) <= 1.001 * min(every_choice(tables))


def test_a_box_that_was_asked_for_stays():
    tables = Neighborhood(size=("all", 8, 8)).on((2, 16, 16)).tables
    chosen = choose_strips(tables, (2, 8, 8))
    assert chosen.query == (2, 8, 8) and chosen.block_q == 128
    assert "boxes of 2 x 8 x 8" in chosen.words and isinstance(chosen.key, Strips)


def test_of_equals_both_sides_get_one_walk():
    tables = Neighborhood().on((1, 64, 64)).tables
    chosen = choose_strips(tables)
    assert (chosen.query, chosen.block_q) == (chosen.key, chosen.block_k)
    windows = Neighborhood().on((1, 64, 64))
    order, key_order = windows.orders(TokenLayout.of_grid(1, 64, 64, text=8), "cuda")
    assert order is key_order


SIZES = [((21, 30, 52), 0), ((21, 45, 80), 0), ((33, 45, 80), 256), ((1, 64, 64), 512), ((1, 256, 256), 512)]


@pytest.mark.parametrize(("grid", "text"), SIZES)
def test_plans_fit_the_grids_of_real_models(grid, text):
    facts = plan_facts(Neighborhood(), TokenLayout.of_grid(*grid, text=text), "cuda")
    assert 1 <= facts.waste <= 1.25
    assert facts.filled > 0.99
    assert (facts.block_q, facts.partial < 0.35) == (128, True)


@pytest.mark.parametrize("settings", WINDOWS)
@pytest.mark.parametrize("text", [0, 5])
def test_plans_for_a_gpu_compute_the_same(settings, text, monkeypatch):
    layout, small = (
        TokenLayout.of_grid(4, 7, 9, text=text),
        StripChoice(Strips((None, 2, 3)), Strips((2, None, 2)), 16, 12),
    )
    monkeypatch.setattr("genkit.attention.grid_windows.choose_strips", lambda tables, query: small)
    method, inputs = Neighborhood(**settings), [x.double().requires_grad_() for x in tokens(layout)]
    plan = method.build_plan(layout, "cuda").plan
    assert (plan.block_q, plan.block_k) == (16, 12)
    for backend in ("reference", "cpu"):
        out, _ = block_sparse_attention(*inputs, plan, backend=backend)
        right = attention_over(*inputs, method.mask(layout))
        torch.testing.assert_close(out, right, atol=1e-9, rtol=1e-9)
        weight = torch.sin(torch.arange(out.numel())).view(out.shape)
        pairs = zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (out, right)), strict=True)
        for one, two in pairs:
            torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-9)
