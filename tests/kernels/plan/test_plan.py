"""Plans: lists equal the definition, full and absent are claimed only when true; refusals, densities, conversions."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import bit_tiles, make
from oracle import visible
from syncs import Syncs
from torch.utils._python_dispatch import TorchDispatchMode

from genkit.errors import UsageError
from genkit.kernels import NONE, WINDOW, BlockPlan, Rule, TokenOrder, block_sparse_attention
from genkit.kernels.block_sparse import FULL, PARTIAL
from genkit.kernels.plan.bit_tiles import pack, unpack
from genkit.kernels.plan.visibility import block_pairs
from genkit.layout import TokenLayout


def tokens_of(plan):
    """(B|1, H|1, Nq, Nk) bool: what the plan's lists and tables let through, in original token order."""
    state, inner = plan.states(), plan.in_order()
    rows = torch.arange(plan.blocks_q * plan.block_q)
    columns = torch.arange(plan.blocks_k * plan.block_k)
    wide = torch.zeros(plan.batch, plan.heads, len(rows), len(columns), dtype=torch.bool)
    for b, h, i, j in itertools.product(*map(range, state.shape)):
        part = wide[b, h, i * plan.block_q : (i + 1) * plan.block_q, j * plan.block_k : (j + 1) * plan.block_k]
        if state[b, h, i, j] == FULL:
            part.fill_(True)
        elif state[b, h, i, j] == PARTIAL:
            if plan.tiles is None:
                part.copy_(block_pairs(inner, torch.tensor([i]), torch.tensor([j]), b)[0])
            else:
                part.copy_(unpack(plan.tiles.words[plan.tile_numbers()[b, h, i, j]], plan.block_k))
    q_slot = torch.arange(plan.n_q) if plan.order is None else plan.order.inverse
    k_slot = torch.arange(plan.n_k) if plan.key_order is None else plan.key_order.inverse
    return wide[:, :, q_slot][..., k_slot]


@pytest.mark.parametrize("seed", [s for s in range(3000, 3090) if s % 3])
def test_a_rule_becomes_lists_that_say_exactly_the_same(seed):
    case = make(seed)
    plan = BlockPlan.from_rule(case.rule, **case.sizes, check=False)
    assert torch.equal(tokens_of(plan), visible(case.rule).expand(plan.batch, -1, -1, -1))
    density = plan.density()
    assert density.computed == pytest.approx(visible(case.rule).float().mean().item(), abs=1e-6)
    assert density.executed >= density.computed - 1e-9


def test_full_blocks_are_found_when_the_window_covers_them():
    place = torch.arange(64)[:, None]
    low = place // 16 * 16
    rule = Rule(low, low + 16, place, torch.zeros(64), torch.zeros(64), torch.full((1, 1), WINDOW))
    plan = BlockPlan.from_rule(rule, block_q=16, block_k=16)
    assert plan.partial_count.sum() == 0
    assert plan.full_index[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    assert plan.density() == (0.25, 0.25)


def test_inverse_lists_are_the_transposed_plan():
    mask = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[..., 0] = True
    inverse = BlockPlan.from_dense_blocks(mask, 5 * 8, 7 * 4 - 1, block_q=8, block_k=4).inverse()
    for b, h, j in itertools.product(range(2), range(3), range(7)):
        counts, index = (
            (inverse.full_count, inverse.full_index) if j < 6 else (inverse.partial_count, inverse.partial_index)
        )
        found = index[b, h, j, : counts[b, h, j]].tolist()
        assert found == mask[b, h, :, j].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("compiled", [False, True])
def test_lists_of_any_width_ask_for_one_compiled_kernel(compiled, monkeypatch):
    jit = pytest.importorskip("triton.runtime.jit")
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: compiled)
    kinds, widths = set(), set()
    for seen in (1, 2, 15, 16, 17, 33):
        mask = torch.arange(40) >= 40 - seen
        plan = BlockPlan.from_dense_blocks(mask.expand(40, 40), 160, 159, block_q=4, block_k=4, check=False)
        assert torch.equal(plan.states() != 0, mask.expand(1, 1, 40, 40))
        lists = plan.inverse()
        for index in (plan.full_index, plan.partial_index, lists.full_index, lists.partial_index):
            widths.add(index.shape[-1])
            kinds.add(_kind(jit, index.shape[-1]))
    assert len(kinds) == 1 and (compiled or len(widths) == 3)


def _kind(jit, number):
    """What Triton compiles a kernel for when it is given this number."""
    from triton.backends.compiler import BaseBackend

    return jit.native_specialize_impl(BaseBackend, number, False, True, True)


def test_lists_from_indices_ignore_what_is_beyond_the_count_and_repetitions():
    index = torch.tensor([[3, 1, 1], [0, 2, 99], [2, 0, 1]])[None, None]
    count = torch.tensor([[[3, 2, 1]]])
    plan = BlockPlan.from_indices(index, 12, 16, count=count, block_q=4, block_k=4)
    assert plan.full_count[0, 0].tolist() == [2, 2, 1]
    assert [plan.full_index[0, 0, i, :c].tolist() for i, c in enumerate((2, 2, 1))] == [[1, 3], [0, 2], [2]]


def test_lists_from_indices_are_tidied_without_a_look():
    g = torch.Generator().manual_seed(1)
    for n_k, width in ((16, 3), (14, 9), (200, 20)):
        index = torch.randint(0, -(-n_k // 4), (2, 2, 3, width), generator=g)
        count = torch.randint(1, width + 1, (2, 2, 3), generator=g)
        sizes = {"count": count, "block_q": 4, "block_k": 4}
        with Syncs() as syncs:
            plan = BlockPlan.from_indices(index, 12, n_k, check=False, **sizes)
        assert torch.equal(plan.states(), BlockPlan.from_indices(index, 12, n_k, **sizes).states()) and not syncs.found
        beyond = BlockPlan.from_indices(index + 1000, 12, n_k, check=False, **sizes)
        assert (beyond.states()[..., :-1] == 0).all() and (beyond.states()[..., -1] != 0).all()


def empty_rule():
    low = torch.tensor([0, 5, 9])[:, None]
    return Rule(low, low + 2, torch.arange(8)[:, None], torch.zeros(3), torch.zeros(8), torch.full((1, 1), WINDOW))


def test_a_query_that_sees_no_key_is_named():
    with pytest.raises(UsageError, match="query token 2 .*sees no key"):
        BlockPlan.from_rule(empty_rule(), block_q=4, block_k=4)


def test_a_query_block_without_blocks_is_named_unless_switched_off():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(UsageError, match="query block 1 .*sees no key block"):
        BlockPlan.from_dense_blocks(mask, 8, 8, block_q=4, block_k=4)
    plan = BlockPlan.from_dense_blocks(mask, 8, 8, block_q=4, block_k=4, off=torch.tensor([[[False, True]]]))
    assert plan.off.tolist() == [[[False, True]]]


def test_a_group_that_sees_no_group_is_switched_off_on_purpose():
    rule = Rule(
        torch.zeros(8, 1),
        torch.full((8, 1), 3),
        torch.arange(6)[:, None],
        torch.tensor([0, 0, 0, 1, 1, 0, 0, 0]),
        torch.zeros(6),
        torch.tensor([[WINDOW], [NONE]]),
    )
    plan = BlockPlan.from_rule(rule, block_q=4, block_k=4)
    q = torch.randn(1, 8, 1, 16, requires_grad=True)
    out, lse = block_sparse_attention(q, torch.randn(1, 6, 1, 16), torch.randn(1, 6, 1, 16), plan)
    assert out[0, 3:5].abs().max() == 0 and lse[0, 0, 3:5].tolist() == [float("-inf")] * 2
    (out.sum() + lse[lse.isfinite()].sum()).backward()
    assert q.grad[0, 3:5].abs().max() == 0 and q.grad[0, 0].abs().max() > 0


def test_no_keys_at_all_is_refused():
    with pytest.raises(UsageError, match="sees no key"):
        BlockPlan.from_rule(Rule.everything(4, 0), block_q=4, block_k=4)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(q_hi=torch.zeros(3, 2)), "q_lo and q_hi"),
        (dict(k_pos=torch.zeros(8, 2)), "k_pos must be"),
        (dict(q_group=torch.zeros(4)), "q_group must be"),
        (dict(k_group=torch.zeros(9)), "k_group must be"),
        (dict(k_group=torch.ones(8)), "k_group must hold groups 0 to 0"),
        (dict(visible=torch.full((1, 1), 3)), "visible must be"),
        (dict(radius2=4), "needs q_pos"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, words):
    low = torch.zeros(3, 1)
    good = dict(
        q_lo=low,
        q_hi=low + 2,
        k_pos=torch.arange(8)[:, None],
        q_group=torch.zeros(3),
        k_group=torch.zeros(8),
        visible=torch.full((1, 1), WINDOW),
    )
    with pytest.raises(UsageError, match=words):
        Rule(**{**good, **change})


@pytest.mark.parametrize(
    "make_plan, words",
    [
        (
            lambda: BlockPlan.from_dense_blocks(torch.ones(2, 3, dtype=torch.bool), 8, 8, block_q=4, block_k=4),
            "mask must be",
        ),
        (lambda: BlockPlan.from_dense_blocks(torch.ones(2, 2), 8, 8, block_q=4, block_k=4), "mask must be bool"),
        (lambda: BlockPlan.from_dense_blocks(torch.ones(1, 1, dtype=torch.bool), 8, 8, block_q=0), "block_q must be"),
        (lambda: BlockPlan.from_indices(torch.tensor([[[[2]]]]), 4, 8, block_q=4, block_k=4), "key blocks 0 to 1"),
        (
            lambda: BlockPlan.from_levels(torch.full((1, 1, 2, 2), 3), 8, 8, block_q=4, block_k=4),
            "divisors of block_k=4",
        ),
        (
            lambda: BlockPlan.from_rule(Rule.causal(8), order=TokenOrder.from_grid((7,), (4,))),
            "order of the queries has 7",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make_plan, words):
    with pytest.raises(UsageError, match=words):
        make_plan()


def test_a_token_order_puts_boxes_and_text_into_blocks_of_their_own():
    layout = TokenLayout.of_grid(2, 3, 4, text=5, text_first=True)
    order = TokenOrder.from_layout(layout, (1, 2, 2))
    assert order.block == 4 and order.length == 29
    assert order.gather[:8].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert order.gather[8:16].tolist() == [5, 6, 9, 10, 7, 8, 11, 12]
    assert order.gather[16:24].tolist() == [13, 14, -1, -1, 15, 16, -1, -1]
    x = torch.randn(2, 29, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(order.restore(order.apply(x)), x)
    assert torch.autograd.gradcheck(order.apply, (x,)) and torch.autograd.gradcheck(order.restore, (order.apply(x),))


def test_padding_is_zero_whatever_the_tokens_hold_and_no_pass_over_all_slots_makes_it_so():
    order = TokenOrder.from_grid((2, 9, 7), (1, 4, 4), (("text", 3), ("grid", 126)))
    assert torch.equal(order.padding, (order.gather < 0).nonzero().flatten()) and 0 < len(order.padding)
    x = torch.full((2, 129, 3), torch.nan)
    with Operators() as seen:
        slots = order.apply(x)
    assert torch.equal(slots.isnan().all(-1)[0], order.gather >= 0) and slots[:, order.padding].eq(0).all()
    whole = [name for name, size in seen.found if size >= slots.numel()]
    assert whole == ["index_select", "index_fill_"] and seen.found[-1][0] == "index_fill_"
    moved = order.to("meta")
    assert moved.padding.device.type == "meta" and moved.apply(x.to("meta")).shape == slots.shape


class Operators(TorchDispatchMode):
    """Names of the operators that run, and the elements of what each gives."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found.append((func.overloadpacket.__name__, out.numel()))
        return out


def test_dilation_separates_the_residues():
    order = TokenOrder.from_grid((7,), (2,), dilation=3)
    assert order.gather.tolist() == [0, 3, 6, -1, 1, 4, 2, 5]


@pytest.mark.parametrize(
    "make_order, words",
    [
        (lambda: TokenOrder.from_grid((4, 4), (2,)), "one number >= 1"),
        (lambda: TokenOrder.from_grid((4,), (0,)), "one number >= 1"),
        (lambda: TokenOrder.from_grid((4,), (2,), [("grid", 5)]), "its segment 5"),
        (lambda: TokenOrder.from_permutation(torch.tensor([0, 0]), 2), "every index"),
        (lambda: TokenOrder.from_grid((4,), (2,)).apply(torch.zeros(1, 5)), "axis 1 has length 5"),
    ],
)
def test_wrong_orders_are_refused(make_order, words):
    with pytest.raises(UsageError, match=words):
        make_order()


def test_a_plan_in_order_works_on_permuted_tensors():
    case = make(2)
    order = TokenOrder.from_grid((case.rule.n_q,), (6,))
    plan = BlockPlan.from_rule(case.rule, order=order, key_order=order)
    whole = block_sparse_attention(case.q, case.k, case.v, plan)
    parts = block_sparse_attention(*(order.apply(x) for x in (case.q, case.k, case.v)), plan.in_order())
    assert torch.equal(order.restore(parts[0]), whole[0]) and torch.equal(order.restore(parts[1], 2), whole[1])
    padding = (order.gather < 0).nonzero()[:, 0]
    assert parts[0][:, padding].abs().sum() == 0 and bool((parts[1][:, :, padding] == -torch.inf).all())


@pytest.mark.parametrize("seed", [3000, 3001, 3002, 3004, 3005])
def test_a_mask_function_gives_the_plan_of_its_mask(seed):
    case = make(seed)
    plan = bit_tiles(case)
    mask = case.mask.expand(plan.batch, plan.heads, -1, -1)
    assert torch.equal(tokens_of(plan), mask)
    assert plan.density().computed == pytest.approx(mask.float().mean().item(), abs=1e-6)
    moved = plan.to("meta")
    assert moved.tiles is None or moved.tiles.words.device.type == "meta"


def test_equal_bit_tiles_are_stored_once():
    plan = BlockPlan.from_mask_mod(lambda b, h, i, j: i >= j, 640, 640, heads=3)
    assert plan.heads == 3 and int(plan.partial_count.sum()) == 30 and plan.tiles.words.shape == (1, 64, 2)
    assert BlockPlan.from_mask_mod(lambda b, h, i, j: i // 64 >= j // 64, 640, 600).tiles is None


def test_bits_are_packed_and_unpacked_whatever_the_width():
    for width in (1, 31, 32, 33, 64, 70):
        seen = torch.rand(3, 5, width, generator=torch.Generator().manual_seed(width)) < 0.5
        words = pack(seen)
        assert words.shape == (3, 5, -(-width // 32)) and torch.equal(unpack(words, width), seen)
    assert pack(torch.ones(1, 32, dtype=torch.bool)).item() == -1


def test_keep_and_off_restrict_a_mask_function_and_empty_rows_are_refused():
    keep = torch.tensor([[True, False], [True, True]])[None, None]

    def late(b, h, i, j):
        return j >= 3

    options = dict(block_q=4, block_k=4, keep=keep)
    seen = tokens_of(BlockPlan.from_mask_mod(late, 7, 6, **options))[0, 0]
    assert seen[:4, 3].all() and not seen[:4, 4:].any() and seen[4:, 3:].all() and not seen[:, :3].any()
    off = torch.tensor([[[True, False]]])
    plan = BlockPlan.from_mask_mod(late, 7, 6, off=off, **options)
    assert plan.off.tolist() == [[[True, False]]]
    with pytest.raises(UsageError, match="query token 5 .*sees no key .*check=False"):
        BlockPlan.from_mask_mod(lambda b, h, i, j: (j >= 3) & (i != 5), 7, 6, block_q=4, block_k=4)
    with pytest.raises(UsageError, match="keep must be bool"):
        BlockPlan.from_mask_mod(late, 7, 6, block_q=4, block_k=4, keep=keep[0])


@pytest.mark.parametrize("lead", [(None, None), (2, None), (2, 4)])
def test_a_block_mask_of_any_function_becomes_a_plan_and_a_block_mask_again(lead):
    from torch.nn.attention.flex_attention import create_block_mask

    number = torch.randint(0, 2, (2, 4, 50, 61), generator=torch.Generator().manual_seed(8), dtype=torch.bool)
    number[:, :, :, 5] = True

    def any_pairs(b, h, i, j):
        return number[b if lead[0] else 0, h if lead[1] else 0, i, j] & (j < 40)

    mask = create_block_mask(any_pairs, *lead, 50, 61, device="cpu", BLOCK_SIZE=16)
    plan = BlockPlan.from_block_mask(mask)
    seen = number[: lead[0] or 1, : lead[1] or 1].clone()
    seen[..., 40:] = False
    assert torch.equal(tokens_of(plan), seen)
    back = BlockPlan.from_block_mask(plan.to_block_mask())
    assert torch.equal(tokens_of(back), seen)
    turned = plan.inverse()
    for key in range(plan.blocks_k):
        for place in range(int(turned.partial_count[0, 0, key])):
            row = int(turned.partial_index[0, 0, key, place])
            wanted = seen[0, 0, row * 16 : row * 16 + 16, key * 16 : key * 16 + 16]
            bits = unpack(plan.tiles.words[turned.partial_tile[0, 0, key, place]], 16)
            assert torch.equal(bits[: wanted.shape[0], : wanted.shape[1]], wanted)


@pytest.mark.parametrize("seed", [3001, 3002, 3004, 3005])
def test_block_masks_there_and_back(seed):
    case = make(seed)
    plan = BlockPlan.from_rule(case.rule, **case.sizes, check=False).in_order()
    back = BlockPlan.from_block_mask(plan.to_block_mask())
    assert torch.equal(tokens_of(back), tokens_of(plan))


def test_a_rule_given_for_a_foreign_block_mask_must_agree_with_it():
    from torch.nn.attention.flex_attention import create_block_mask

    def window(b, h, i, j):
        return (i - j).abs() <= 5

    mask = create_block_mask(window, None, None, 50, 50, device="cpu", BLOCK_SIZE=16)
    place = torch.arange(50)[:, None]

    def band(width):
        group = torch.zeros(50)
        return Rule(place - width, place + width + 1, place, group, group, torch.full((1, 1), WINDOW))

    plan = BlockPlan.from_block_mask(mask, band(5))
    assert torch.equal(tokens_of(plan)[0, 0], (place - place.T).abs() <= 5)
    with pytest.raises(UsageError, match="the two must agree"):
        BlockPlan.from_block_mask(mask, band(4))
    blocked = create_block_mask(lambda b, h, i, j: i // 16 >= j // 16, None, None, 50, 50, device="cpu", BLOCK_SIZE=16)
    plain = BlockPlan.from_block_mask(blocked)
    assert torch.equal(tokens_of(plain)[0, 0], place // 16 >= place.T // 16)


def test_a_plan_moves_between_devices_and_keeps_its_meaning():
    plan = BlockPlan.from_rule(Rule.causal(20), order=TokenOrder.from_grid((20,), (8,)))
    moved = plan.to("meta")
    assert moved.device.type == "meta" and moved.rule.k_pos.device.type == "meta"
    assert moved.order is moved.key_order and moved.order.gather.device.type == "meta"
    assert plan.to("cpu") is plan


@pytest.mark.parametrize("queries, keys", [(1, 1), (64, 64)])
@pytest.mark.parametrize("far", [-1000, 1000])
def test_a_block_mask_without_partial_blocks_is_read_whatever_its_function_computes(queries, keys, far):
    from torch.nn.attention.flex_attention import create_block_mask

    mask = create_block_mask(lambda b, h, i, j: j <= i + far, 1, 1, queries, keys, device="cpu", BLOCK_SIZE=16)
    plan = BlockPlan.from_block_mask(mask)
    assert plan.density().computed == (1 if far > 0 else 0)
