"""What the Triton kernels read of a plan: packed rules and split lists, checked pair by pair without a kernel."""

from __future__ import annotations

import pytest
import torch

from genkit.kernels import ALL, WINDOW, BlockPlan, Rule, TokenOrder
from genkit.kernels.block_sparse.impl.triton.boxes import BEYOND, pack
from genkit.kernels.block_sparse.impl.triton.plan_tables import translate
from genkit.kernels.block_sparse.impl.triton.tile import BOX, MEMBER, NO_MASK, RULE

NONE = 0


def random_rule(g: torch.Generator, n_q: int, n_k: int, visible: torch.Tensor, batch: int = 1, spread: int = 9) -> Rule:
    """Windows on one to three axes, some of them empty or far outside, and token groups."""
    axes = int(torch.randint(1, 4, (1,), generator=g))
    low = torch.randint(-spread, spread, (n_q, axes), generator=g)
    high = low + torch.randint(-1, spread, (n_q, axes), generator=g)
    low[::7], high[::5] = -(1 << 31), (1 << 31) - 1
    pos = torch.randint(-spread, spread, (n_k, axes), generator=g)
    groups = [torch.randint(0, size, shape, generator=g) for size, shape in zip(visible.shape, [(n_q,), (batch, n_k)])]  # noqa: B905
    return Rule(low, high, pos, *groups, visible)


def boxes_show(plan: BlockPlan, batch: int) -> torch.Tensor:
    """The arithmetic of the kernels on whole tables."""
    words = pack(plan)
    slots_q, slots_k = plan.blocks_q * plan.block_q, plan.blocks_k * plan.block_k
    assert words.q_low.shape[-1] == slots_q + BEYOND and words.k_low.shape[-1] == slots_k + BEYOND
    k_low = words.k_low[batch % len(words.k_low), :slots_k]
    k_high = k_low | words.guard if words.k_high is None else words.k_high[batch % len(words.k_high), :slots_k]
    q_low, q_high = words.q_low[:slots_q, None], words.q_high[:slots_q, None]
    return ((k_high - q_low) & (q_high - k_low) & words.guard) == words.guard


TABLES = [
    [[WINDOW]],
    [[ALL, ALL], [ALL, WINDOW]],
    [[WINDOW, ALL, NONE], [WINDOW, ALL, NONE]],
    [[NONE, NONE, NONE], [WINDOW, NONE, WINDOW], [ALL, ALL, ALL]],
    [[ALL, NONE], [NONE, ALL]],
    [[WINDOW, NONE, ALL], [NONE, WINDOW, ALL], [NONE, NONE, NONE]],
]


@pytest.mark.parametrize("visible", TABLES, ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_rules_show_the_same_pairs(visible, ordered):
    g = torch.Generator().manual_seed(len(visible))
    order = TokenOrder.from_grid((3, 5, 4), (2, 2, 3)) if ordered else None
    for batch in (1, 2, 1):
        rule = random_rule(g, 60, 60, torch.tensor(visible), batch)
        plan = BlockPlan.from_rule(rule, block_q=16, block_k=8, order=order, check=False)
        real_q, real_k = (
            torch.arange(block)[None] < valid[:, None]
            for valid, block in ((plan.q_valid, plan.block_q), (plan.k_valid, plan.block_k))
        )
        for b in range(batch):
            slots = plan.blocks_q * plan.block_q, plan.blocks_k * plan.block_k
            exact = plan.rule.tile(*(torch.arange(n) for n in slots), b)
            exact = exact & real_q.reshape(-1, 1) & real_k.reshape(1, -1)
            assert torch.equal(boxes_show(plan, b), exact)


def test_rules_without_a_packed_form_are_read_axis_by_axis():
    g = torch.Generator().manual_seed(3)
    apart = random_rule(g, 40, 40, torch.tensor([[ALL, WINDOW], [WINDOW, WINDOW]]))
    place = torch.arange(40)[:, None]
    disc = Rule(place - 9, place + 9, place, torch.zeros(40), torch.zeros(40), torch.full((1, 1), WINDOW), 25, place)
    wide = random_rule(g, 40, 40, torch.tensor([[WINDOW]]), spread=1 << 20)
    wide = Rule(*(t.repeat(1, 3)[:, :2] for t in (wide.q_lo, wide.q_hi, wide.k_pos)), *wide.tensors()[3:])
    for rule in (apart, disc, wide):
        plan = BlockPlan.from_rule(rule, block_q=16, block_k=16, check=False)
        assert pack(plan) is None and translate(plan, False).kind == RULE.value


def ragged_plan() -> BlockPlan:
    order = TokenOrder.from_grid((5, 5, 5), (2, 4, 4))
    place = torch.cartesian_prod(*(torch.arange(5),) * 3)
    rule = Rule(place - 2, place + 3, place, torch.zeros(125), torch.zeros(125), torch.full((1, 1), WINDOW))
    return BlockPlan.from_rule(rule, order=order).in_order()


def test_entries_that_only_lack_keys_need_no_rule():
    plan = ragged_plan()
    problem = translate(plan, False)
    lists, real = problem.lists, torch.arange(plan.block_k) < plan.k_valid[:, None]
    assert problem.kind == BOX.value and int(lists.ragged_count.sum()) and (lists.ragged_count < lists.part_count).any()
    for row, (ragged, count) in enumerate(zip(lists.ragged_count[0, 0].tolist(), lists.part_count[0, 0].tolist())):  # noqa: B905
        entries = lists.part_index[0, 0, row, :count].tolist()
        assert sorted(entries) == plan.partial_index[0, 0, row, :count].tolist()
        for number, block in enumerate(entries):
            rows = torch.arange(plan.block_q)[: plan.q_valid[row]] + row * plan.block_q
            seen = plan.rule.tile(rows, torch.arange(plan.block_k) + block * plan.block_k)[:, real[block]]
            assert bool(seen.all()) or number >= ragged


@pytest.mark.parametrize("group", [1, 3])
def test_inverse_lists_take_ragged_blocks_for_full_ones_and_join_the_heads_of_a_group(group):
    plan = ragged_plan()
    rows, columns = translate(plan, False), translate(plan, True, group)
    want = {True: set(), False: set()}
    for row in range(plan.blocks_q):
        full = rows.lists.full_index[0, 0, row, : rows.lists.full_count[0, 0, row]].tolist()
        split = rows.lists.ragged_count[0, 0, row]
        part = rows.lists.part_index[0, 0, row, : rows.lists.part_count[0, 0, row]].tolist()
        want[True] |= {(row, column) for column in full + part[:split]}
        want[False] |= {(row, column) for column in part[split:]}
    for whole, count, index in (
        (True, columns.lists.full_count, columns.lists.full_index),
        (False, columns.lists.part_count, columns.lists.part_index),
    ):
        found = {
            (code >> MEMBER.value, code % (1 << MEMBER.value), column)
            for column in range(plan.blocks_k)
            for code in index[0, 0, column, : count[0, 0, column]].tolist()
        }
        assert found == {(member, *pair) for member in range(group) for pair in want[whole]}


def test_a_rule_that_hides_nothing_inside_a_block_costs_nothing():
    plan = BlockPlan.from_rule(Rule.everything(100, 90), block_q=32, block_k=32)
    problem = translate(plan, False)
    assert problem.kind == NO_MASK.value and problem.mask is None and problem.lists.ragged_count is None
    assert translate(plan, True).lists.part_count is None
