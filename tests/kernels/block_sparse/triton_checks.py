"""The Triton kernels in Triton's interpreter against brute force in float64. test_triton.py runs it in a process."""

from __future__ import annotations

import pytest
import torch
from cases import bit_tiles, make
from hiding import PLACES, factor_gradients, low_rank, quadratic
from hiding import compare as compare_hidden
from oracle import Case, attend, magnitudes
from test_parity import build, check
from tolerance import assert_close

from genkit.errors import UnsupportedError
from genkit.kernels import (
    WINDOW,
    BlockPlan,
    LowRank,
    Quadratic,
    Rule,
    Table,
    TokenOrder,
    block_sparse_attention,
    why_not,
)
from genkit.kernels.block_sparse.impl.triton import launch
from genkit.kernels.block_sparse.impl.triton import tile_sizes as block_sizes
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile
from genkit.kernels.channels import head_parts


@pytest.fixture
def tiles():
    """Set the tile of all three kernels for one test."""

    def use(tile: Tile) -> None:
        for kernel in block_sizes.KERNELS:
            for width in block_sizes.WIDTHS:
                for dtype in (torch.float32, torch.float16):
                    block_sizes.prefer("interpreter", kernel, width, dtype, tile)

    yield use
    for kernel in block_sizes.KERNELS:
        for width in block_sizes.WIDTHS:
            for dtype in (torch.float32, torch.float16):
                block_sizes.prefer("interpreter", kernel, width, dtype, None)


def tensors(seed, n_q, n_k, heads=2, key_heads=None, width=40, batch=1, dtype=torch.float32, size=1.0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(batch, n_q, heads, width), *[(batch, n_k, key_heads or heads, width)] * 2]
    q, k, v = (torch.randn(shape, generator=g) for shape in shapes)
    return [x.to(dtype) for x in (q * size, k, v)]


def compare(q, k, v, plan, mask, label, scale=None, bias=None, dense_bias=None, leaves=()):
    """Output, lse and every gradient, against float64 and within the budget that eager in q's dtype sets."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    g = torch.Generator().manual_seed(99)
    d_out = torch.randn(q.shape, generator=g).to(q.dtype)
    d_lse = torch.randn(q.shape[0], q.shape[2], q.shape[1], generator=g)

    def results(out, lse, inputs):
        loss = (out * d_out.to(out.dtype)).sum() + (torch.where(lse.isfinite(), lse, 0) * d_lse.to(lse.dtype)).sum()
        return [out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)]

    brute = []
    for dtype in (torch.float64, q.dtype):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        extra = [x.detach().to(wide).requires_grad_() for x in leaves]
        added = None if dense_bias is None else dense_bias(*extra)
        out, lse = attend(*inputs, mask, scale, added, dtype=dtype)
        brute.append(results(out, lse, inputs + extra))
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    extra = [x.detach().requires_grad_() for x in leaves]
    made = None if bias is None else bias(*extra)
    out, lse = block_sparse_attention(*inputs, plan, scale=scale, backend="triton", bias=made)
    found = results(out, lse, inputs + extra)
    names = ["out", "lse", "dq", "dk", "dv", *(f"bias gradient {i}" for i in range(len(leaves)))]
    terms = [None] * len(names) if made is not None else magnitudes(Case(0, q, k, v, mask, scale), d_out, d_lse)
    for name, x, exact, eager, size in zip(names, found, *brute, terms, strict=True):
        assert_close(x, exact, eager, f"{label} {name}", size)


def cost(case, plan) -> int:
    """Visited blocks of all heads, the unit of the interpreter's time."""
    visits = int((plan.full_count + plan.partial_count).sum()) // (plan.batch * plan.heads)
    return visits * case.q.shape[0] * case.q.shape[2]


@pytest.mark.parametrize("plan_of", [build, bit_tiles], ids=["as stated", "bit tiles"])
@pytest.mark.parametrize("start", range(3000, 3240, 60))
def test_generated_problems(start, plan_of, nan_memory):
    ran = spent = 0
    for seed in range(start, start + 60):
        case = make(seed)
        if case.q.dtype not in (torch.float32, torch.float16):
            continue
        work = cost(case, plan_of(case))
        if work <= 16 and (ran < 5 or spent + work <= 36):
            spent += work
            check(seed, "triton", plan_of=plan_of)
            ran += 1
    assert ran >= 5


@pytest.mark.parametrize("width", [40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_head_sizes_and_scales(width, dtype):
    rule = Rule.causal(130)
    mask = torch.ones(130, 130, dtype=torch.bool).tril()[None, None]
    size = {40: 16.0, 80: 4.0, 128: 16.0, 160: 4.0}.get(width, 1.0)
    q, k, v = tensors(width, 130, 130, heads=1, width=width, dtype=dtype, size=size)
    compare(q, k, v, BlockPlan.from_rule(rule, block_q=64, block_k=64), mask, f"D={width} {dtype}")


@pytest.mark.parametrize(
    "tile,blocks",
    [(Tile(32, 16, 4, 1), (128, 64)), (Tile(64, 32, 4, 1), (48, 96)), (Tile(16, 32, 4, 1), (16, 8))],
)
def test_plan_blocks_of_other_sizes_than_the_tiles(tile, blocks, tiles):
    tiles(tile)
    keep = torch.rand(1, 2, -(-75 // blocks[0]), -(-110 // blocks[1]), generator=torch.Generator().manual_seed(1)) < 0.5
    keep[..., -1] = True
    plan = BlockPlan.from_dense_blocks(keep, 75, 110, block_q=blocks[0], block_k=blocks[1])
    mask = keep.repeat_interleave(blocks[0], 2)[:, :, :75].repeat_interleave(blocks[1], 3)[..., :110]
    compare(*tensors(3, 75, 110, heads=2, key_heads=1, width=16), plan, mask, f"{tile} {blocks}")


def test_pooled_keys_are_packed_into_tiles():
    levels = torch.tensor([[1, 2, 4, 8], [8, 1, 0, 2], [4, 4, 1, 8]])[None, None]
    q, k, v = tensors(4, 170, 230)
    plan = BlockPlan.from_levels(levels, 170, 230)
    found, exact = [], []
    for backend, dtype, into in (("triton", torch.float32, found), ("reference", torch.float64, exact)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse = block_sparse_attention(*inputs, plan, backend=backend)
        into += [out, lse, *torch.autograd.grad(out.sin().sum() + lse.cos().sum(), inputs)]
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_low_rank_bias_and_its_gradients(rank, nan_memory):
    g = torch.Generator().manual_seed(5)
    f, other = torch.randn(1, 70, 2, rank, generator=g), torch.randn(2, 90, 1, rank, generator=g)
    q, k, v = tensors(6, 70, 90, key_heads=1, batch=2)
    keep = torch.tensor([[True, True], [True, False]])[None, None]
    mask = keep.repeat_interleave(64, 2)[:, :, :70].repeat_interleave(64, 3)[..., :90]
    plan = BlockPlan.from_dense_blocks(keep, 70, 90)
    compare(
        q,
        k,
        v,
        plan,
        mask,
        f"low rank {rank}",
        bias=LowRank,
        leaves=(f, other),
        dense_bias=lambda f, g: torch.einsum("bihr,bjhr->bhij", f.expand(2, -1, -1, -1), g.expand(-1, -1, 2, -1)),
    )


@pytest.mark.parametrize("width", [80, 192])
def test_low_rank_bias_of_heads_in_parts_and_of_wide_ones(width):
    g = torch.Generator().manual_seed(8)
    f, other = torch.randn(1, 40, 2, 2, generator=g), torch.randn(1, 50, 2, 2, generator=g)
    compare(
        *tensors(9, 40, 50, heads=2, key_heads=1, width=width),
        BlockPlan.dense(40, 50),
        torch.ones(1, 1, 40, 50, dtype=torch.bool),
        f"low rank, D={width}",
        bias=LowRank,
        leaves=(f, other),
        dense_bias=lambda f, g: torch.einsum("bihr,bjhr->bhij", f, g),
    )


def test_quadratic_bias_and_its_gradient():
    g = torch.Generator().manual_seed(7)
    at, to = torch.rand(70, 2, generator=g) * 4, torch.rand(90, 2, generator=g) * 4
    gain, hinge = torch.rand(90, generator=g), torch.tensor([0.5, 0.0])
    weight = torch.rand(2, 2, generator=g)
    mask = torch.ones(1, 1, 70, 90, dtype=torch.bool)

    def dense(w):
        apart = ((at[:, None].double() - to[None].double()).abs() - hinge.double()).clamp(min=0).square()
        return (-gain * torch.einsum("ha,ija->hij", w.double(), apart))[None]

    compare(
        *tensors(8, 70, 90),
        BlockPlan.dense(70, 90),
        mask,
        "quadratic",
        leaves=(weight,),
        dense_bias=dense,
        bias=lambda w: Quadratic(at, to, w, hinge=hinge, k_gain=gain),
    )


def test_rows_off_and_hidden_keys():
    off = torch.tensor([[[False, True, False]]])
    keep = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    plan = BlockPlan.from_dense_blocks(keep, 140, 150, off=off)
    mask = (~off.repeat_interleave(64, 2)[..., :140, None]).expand(1, 1, 140, 150)
    compare(*tensors(9, 140, 150, heads=1, width=16), plan, mask, "off")
    shown = torch.rand(2, 70, generator=torch.Generator().manual_seed(2)) < 0.7
    plan = BlockPlan.from_rule(Rule.everything(40, 70).hide_keys(shown))
    compare(*tensors(10, 40, 70, heads=1, width=16, batch=2), plan, shown[:, None, None].expand(2, 1, 40, 70), "hidden")


def test_token_order_and_discs():
    order = TokenOrder.from_grid((2, 9, 7), (1, 4, 4), (("text", 3), ("grid", 126)))
    place = torch.cat([torch.zeros(3, 3), torch.cartesian_prod(*(torch.arange(n) for n in (2, 9, 7))).float()]).int()
    group = (torch.arange(129) >= 3).int()
    far = torch.full_like(place, 99)
    rule = Rule(-far, far, place, group, group, torch.tensor([[1, 1], [1, 2]]), radius2=14, q_pos=place)
    apart = (place[:, None] - place[None]).square().sum(-1)
    mask = ((group[:, None] * group[None] == 0) | (apart < 14))[None, None]
    compare(*tensors(11, 129, 129, heads=1, width=16), BlockPlan.from_rule(rule, order=order), mask, "disc")


def test_small_key_blocks_under_a_rule_and_a_bias():
    low = torch.arange(90)[:, None]
    rule = Rule(low - 11, low + 7, low, torch.zeros(90), torch.zeros(90), torch.full((1, 1), WINDOW))
    mask = ((low.T >= low - 11) & (low.T < low + 7))[None, None]
    g = torch.Generator().manual_seed(21)
    f, other = torch.randn(1, 90, 1, 2, generator=g), torch.randn(1, 90, 2, 2, generator=g)
    compare(
        *tensors(20, 90, 90, key_heads=1, width=16),
        BlockPlan.from_rule(rule, block_q=64, block_k=16),
        mask,
        "packed",
        bias=LowRank,
        leaves=(f, other),
        dense_bias=lambda f, g: torch.einsum("bihr,bjhr->bhij", f.expand(-1, -1, 2, -1), g),
    )


@pytest.mark.parametrize("where", PLACES)
def test_a_bias_of_minus_infinity_hides_like_a_mask(where, nan_memory):
    compare_hidden("triton", low_rank, where, "dense")
    compare_hidden("triton", low_rank, where, "bits", dtype=torch.float16)
    compare_hidden("triton", quadratic, where, "rule")
    factor_gradients("triton", where)


def test_bit_tiles_with_a_bias_and_packed_key_blocks():
    g = torch.Generator().manual_seed(22)
    mask = torch.rand(1, 2, 70, 90, generator=g) < 0.3
    mask[..., 4] = True
    mask[0, 1, 11] = False
    f, other = torch.randn(1, 70, 1, 2, generator=g), torch.randn(1, 90, 2, 2, generator=g)
    plan = BlockPlan.from_mask_mod(
        lambda b, h, i, j: mask[0, h, i, j], 70, 90, heads=2, block_q=48, block_k=8, check=False
    )
    compare(
        *tensors(23, 70, 90, key_heads=1, width=16),
        plan,
        mask,
        "bits and a bias",
        bias=LowRank,
        leaves=(f, other),
        dense_bias=lambda f, g: torch.einsum("bihr,bjhr->bhij", f.expand(-1, -1, 2, -1), g),
    )


def test_nan_reaches_exactly_the_rows_that_see_it():
    keep = torch.tensor([[True, False], [False, True]])
    plan = BlockPlan.from_dense_blocks(keep, 128, 128)
    q, k, v = tensors(12, 128, 128, heads=1, width=16)
    q[0, 5] = torch.nan
    out, lse = block_sparse_attention(q, k, v, plan, backend="triton")
    hit = out.isnan().any(-1)[0, :, 0]
    assert hit.nonzero().flatten().tolist() == [5] and lse[0, 0].isnan().nonzero().flatten().tolist() == [5]
    v[0, 100] = torch.nan
    leaves = [x.detach().requires_grad_() for x in (q.nan_to_num(), k, v)]
    out, _ = block_sparse_attention(*leaves, plan, backend="triton")
    assert out[0, 64:].isnan().all() and not out[0, :64].isnan().any()
    dq, dk, _ = torch.autograd.grad(out[:, :64].sum(), leaves)
    # The gradient of rows that saw the NaN is 0 times NaN; the other block's stays clean.
    assert dq[0, :64].isfinite().all() and dk[0, :64].isfinite().all() and dq[0, 64:].isnan().all()


def test_an_infinite_score_leaves_the_log_sum_exp_infinite():
    q, k, v = tensors(33, 70, 90, heads=1, width=16)
    k[0, 50, 0, 0] = torch.inf
    found, exact = (
        block_sparse_attention(q, k, v, BlockPlan.dense(70, 90), backend=b) for b in ("triton", "reference")
    )
    assert torch.equal(found[1].isposinf(), exact[1].isposinf()) and found[1].isposinf().any()
    assert torch.equal(found[0].isnan(), exact[0].isnan()) and not found[1].isnan().any()


def test_backward_repeats_bit_for_bit_and_strides_do_not_matter():
    plan = BlockPlan.from_rule(Rule.causal(70), block_q=32, block_k=32)
    runs = []
    layouts = {
        "plain": lambda x: x,
        "plain again": lambda x: x,
        "heads before tokens": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "channels not dense": lambda x: torch.stack([x, x], -1)[..., 1],
        "one of several heads": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    }
    for layout in layouts.values():
        inputs = [layout(x).detach().requires_grad_() for x in tensors(13, 70, 70, heads=1, width=16)]
        out, _ = block_sparse_attention(*inputs, plan, backend="triton")
        runs.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_addresses_beyond_two_to_the_31():
    # Two batch entries further apart than 32-bit offsets reach; only the pages that are touched exist.
    memory = torch.empty((1 << 31) + 4096, dtype=torch.float16)
    q = memory.as_strided((2, 40, 1, 16), (1 << 31, 16, 16, 1))
    small = tensors(14, 40, 40, heads=1, width=16, batch=2, dtype=torch.float16)
    q.copy_(small[0])
    plan = BlockPlan.dense(40, 40)
    far = block_sparse_attention(q, *small[1:], plan, backend="triton")
    near = block_sparse_attention(*small, plan, backend="triton")
    assert torch.equal(far[0], near[0]) and torch.equal(far[1], near[1])


def test_refusals_say_why():
    q, k, v = tensors(15, 20, 20, width=16)
    plan = BlockPlan.dense(20, 20)
    assert why_not("triton", q, k, v, plan) is None
    assert "bfloat16 wrongly" in why_not("triton", q.bfloat16(), k.bfloat16(), v.bfloat16(), plan)
    assert "float64" in why_not("triton", q.double(), k.double(), v.double(), plan)
    wide = torch.zeros(1, 20, 1, 512)
    assert "exceeds 256" in why_not("triton", wide, wide, wide, plan)
    with pytest.raises(UnsupportedError, match="head dim 512 exceeds 256"):
        block_sparse_attention(wide, wide, wide, plan, backend="triton")
    table = Table((torch.zeros(3),), torch.zeros(20, 1), torch.zeros(20, 1))
    assert "no Table bias" in why_not("triton", q, k, v, plan, bias=table)
    term = LowRank(torch.zeros(20, 65), torch.zeros(20, 65))
    assert "rank 65" in why_not("triton", q, k, v, plan, bias=term)
    assert "one bias term" in why_not("triton", q, k, v, plan, bias=[table, table])


@pytest.fixture
def descriptors():
    """Copy tiles through tensor descriptors, as on devices that have an engine for it; counts the launches that do."""
    used = []
    make = launch._descriptor
    block_sizes.BULK.add("interpreter")
    launch._descriptor = lambda x, box: used.append(box) or make(x, box)
    yield used
    launch._descriptor = make
    block_sizes.BULK.remove("interpreter")


@pytest.mark.parametrize("start", range(5000, 5120, 60))
def test_generated_problems_through_descriptors(start, descriptors, nan_memory):
    ran = spent = 0
    for seed in range(start, start + 60):
        case = make(seed)
        work = cost(case, build(case)) if case.q.dtype == torch.float16 else 99
        if work <= 16 and (ran < 3 or spent + work <= 24):
            spent, ran = spent + work, ran + 1
            check(seed, "triton")
    assert ran >= 3


@pytest.mark.parametrize("block_k", [32, 64])
@pytest.mark.parametrize("width,key_heads", [(40, 1), (80, 1), (128, 2), (20, 2)])
def test_descriptors_where_strides_allow_them(width, key_heads, block_k, tiles, descriptors, nan_memory):
    tiles(Tile(64, 32, 4, 1))
    low = torch.arange(150)[:, None]
    rule = Rule(low - 110, low + 120, low, torch.zeros(150), torch.zeros(150), torch.full((1, 1), WINDOW))
    mask = ((low.T >= low - 110) & (low.T < low + 120))[None, None]
    plan = BlockPlan.from_rule(rule, block_q=64, block_k=block_k)
    # blocks of one tile in pairs, and an odd one; blocks of two tiles each
    assert plan.full_count.max() >= (3 if block_k == 32 else 1)
    compare(*tensors(31, 150, 150, 2, key_heads, width, dtype=torch.float16), plan, mask, f"descriptors, D={width}")
    # 20 channels of 2 bytes are not a multiple of 16
    assert len(descriptors) == (0 if width == 20 else 6 * len(head_parts(width)))


def test_a_bias_of_rank_one_through_descriptors(descriptors, nan_memory, monkeypatch):
    tile = dict.fromkeys((64, 128), (Tile(64, 64, 4, 1),))
    monkeypatch.setitem(block_sizes._BULK_TABLE, "interpreter", dict.fromkeys(block_sizes.KERNELS, tile))
    block_sizes._chosen.cache_clear()
    low = torch.arange(150)[:, None]
    rule = Rule(low - 110, low + 120, low, torch.zeros(150), torch.zeros(150), torch.full((1, 1), WINDOW))
    mask = ((low.T >= low - 110) & (low.T < low + 120))[None, None]
    g = torch.Generator().manual_seed(3)
    compare(
        *tensors(31, 150, 150, 2, 1, 64, dtype=torch.float16),
        BlockPlan.from_rule(rule, block_q=64, block_k=64),
        mask,
        "rank one, descriptors",
        bias=LowRank,
        leaves=(torch.randn(1, 150, 2, 1, generator=g), torch.randn(1, 150, 1, 1, generator=g)),
        dense_bias=lambda f, g: torch.einsum("bihr,bjhr->bhij", f, g.expand(-1, -1, 2, -1)),
    )
    block_sizes._chosen.cache_clear()
    assert len(descriptors) == 6  # keys and values, twice; queries and what comes back for the output
