"""The operator's door: argument checks, capability, compile, custom-op checks, strides, NaN, pooled keys."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from cases import make
from oracle import attend

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels import WINDOW, BlockPlan, LowRank, Rule, TokenOrder, backends, block_sparse_attention, why_not
from genkit.kernels.block_sparse import ops
from genkit.kernels.block_sparse.impl import reference
from genkit.kernels.block_sparse.impl.cpu import backend as cpu
from genkit.kernels.block_sparse.impl.cpu import pieces as cpu_pieces
from genkit.kernels.plan.bias import Quadratic, Table, flatten


def qkv(n_q=40, n_k=52, heads=4, key_heads=2, width=16, dtype=torch.float32, seed=0, grad=False):
    noise = torch.Generator().manual_seed(seed)
    shapes = [(2, n_q, heads, width), (2, n_k, key_heads, width), (2, n_k, key_heads, width)]
    return [torch.randn(s, generator=noise).to(dtype).requires_grad_(grad) for s in shapes]


def window(n_q=40, n_k=52, width=9, **options):
    low = torch.arange(n_q)[:, None]
    rule = Rule(
        low, low + width, torch.arange(n_k)[:, None], torch.zeros(n_q), torch.zeros(n_k), torch.full((1, 1), WINDOW)
    )
    return BlockPlan.from_rule(rule, **{"block_q": 16, "block_k": 8, **options})


def random_plan(n_q=40, n_k=52, heads=4, seed=0):
    noise = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, heads, -(-n_q // 16), -(-n_k // 8), generator=noise) < 0.5
    mask[..., 1] = True
    return BlockPlan.from_dense_blocks(mask, n_q, n_k, block_q=16, block_k=8)


def three_plans():
    ordered = window(order=TokenOrder.from_grid((40,), (7,)), key_order=None)
    return [window(), random_plan(), ordered]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda q, k, v: (q[0], k, v), "takes q"),
        (lambda q, k, v: (q, k, v[:, :5]), "of one shape"),
        (lambda q, k, v: (q[:1], k, v), "agree in batch"),
        (lambda q, k, v: (q[..., :8], k, v), "agree in batch and head size"),
        (lambda q, k, v: (q[:, :, :3], k, v), "3 query heads must be a multiple of the 2"),
        (lambda q, k, v: (q.half(), k, v), "share one of the dtypes"),
        (lambda q, k, v: (q.long(), k.long(), v.long()), "share one of the dtypes"),
        (lambda q, k, v: (q.to("meta"), k, v), "on one device"),
        (lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")), "use plan.to\\('meta'\\)"),
        (lambda q, k, v: (q[:, :39], k, v), "plan is for 40 queries and 52 keys, but q has 39"),
        (lambda q, k, v: (q, k[:, :51], v[:, :51]), "k has 51"),
    ],
)
def test_wrong_tensors_are_refused(change, words):
    with pytest.raises(UsageError, match=words):
        block_sparse_attention(*change(*qkv()), window())


def test_a_plan_for_other_heads_or_batch_is_refused():
    with pytest.raises(UsageError, match="lists for 1 batch entries and 3 heads"):
        block_sparse_attention(*qkv(), random_plan(heads=3))
    hidden = Rule.everything(40, 52).hide_keys(torch.ones(3, 52, dtype=torch.bool))
    with pytest.raises(UsageError, match="lists for 3 batch entries"):
        block_sparse_attention(*qkv(), BlockPlan.from_rule(hidden))
    with pytest.raises(UsageError, match="plan must be a BlockPlan, got Tensor"):
        block_sparse_attention(*qkv(), torch.ones(3))


def test_unknown_backends_are_listed_and_a_named_backend_gives_its_reason():
    with pytest.raises(UsageError, match="'cup'.*allowed: auto, cpu.*did you mean 'cpu'"):
        block_sparse_attention(*qkv(), window(), backend="cup")
    tensors = qkv(grad=True)
    reason = why_not("flex", *tensors, window())
    assert reason is not None and "no backward pass on the CPU" in reason
    with pytest.raises(UnsupportedError, match="no backward pass on the CPU"):
        block_sparse_attention(*tensors, window(), backend="flex")
    assert why_not("flex", *tensors, window(), needs_grad=False) is None
    assert backends()[0] == "cpu" and why_not("cpu", *tensors, window()) is None
    long = torch.zeros(1, 1, 1, 8).expand(1, 1 << 15, 1, 8)
    assert "scores at once" in why_not("flex", long, long, long, window(), needs_grad=False)


def test_the_cpu_backend_refuses_other_devices():
    tensors = [x.to("meta") for x in qkv()]
    assert "meta" in cpu.why_not(*tensors, window())
    assert reference.why_not(*tensors, window()) is None


@pytest.mark.parametrize("plan", three_plans(), ids=["window", "random", "ordered"])
def test_exotic_strides_give_the_same_result(plan):
    tensors = qkv()
    wanted = block_sparse_attention(*tensors, plan)
    for shape in (
        lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        lambda x: torch.stack([x, x], -1)[..., 1],
        lambda x: x.flip(1).contiguous().flip(1),
        lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    ):
        strange = [shape(x).detach().requires_grad_() for x in tensors]
        out, lse = block_sparse_attention(*strange, plan)
        torch.testing.assert_close(out, wanted[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(lse, wanted[1], rtol=0, atol=1e-6)
        plain = [x.detach().clone().requires_grad_() for x in tensors]
        # the gradient of a sum arrives broadcast, with stride 0
        wanted_grads = torch.autograd.grad((block_sparse_attention(*plain, plan, backend="reference")[0]).sum(), plain)
        for x, y in zip(torch.autograd.grad(out.sum(), strange), wanted_grads, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference", "flex"])
def test_nan_reaches_the_rows_that_see_it_and_no_other_query_block(backend):
    q, k, v = qkv(heads=2)
    q[0, 3] = float("nan")
    k[1, 50] = float("nan")
    out, lse = block_sparse_attention(q, k, v, window(), backend=backend)
    assert bool(out[0, 3].isnan().all()) and bool(lse[0, :, 3].isnan().all())
    assert bool(out[0, 16:].isfinite().all()) and bool(out[1, :32].isfinite().all())


def test_results_repeat_bit_for_bit():
    tensors = qkv(grad=True)
    runs = []
    for _ in range(2):
        out, lse = block_sparse_attention(*tensors, random_plan())
        runs.append([out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_dense_plan_equals_dense_attention_and_takes_one_call_per_group():
    q, k, v = qkv(key_heads=4)
    plan = BlockPlan.dense(40, 52, block_q=16, block_k=8)
    out, _ = block_sparse_attention(q, k, v, plan)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-6)
    from genkit.kernels.block_sparse.impl.cpu.schedule import schedule

    assert len(schedule(plan).slices) == 1 and not schedule(plan).gathered


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "plan", [window(12, 14, 3, block_q=4, block_k=4), random_plan(12, 14, 2)], ids=["window", "random"]
)
def test_gradcheck_in_float64(backend, plan):
    tensors = [x[:1, :, :, :3].detach().requires_grad_() for x in qkv(12, 14, 2, 1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: block_sparse_attention(*x, plan, backend=backend), tensors)


def test_the_reference_function_is_differentiable_twice():
    plan = window(8, 9, 2, block_q=4, block_k=4)
    tensors = [x[:1, :, :, :2].detach().requires_grad_() for x in qkv(8, 9, 1, 1, dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(lambda *x: reference.attention(*x, plan, 0.5), tensors)


@pytest.mark.parametrize("plan", three_plans(), ids=["window", "random", "ordered"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(plan, compiler):
    torch._dynamo.reset()
    bias = LowRank(torch.randn(40, 2), torch.randn(52, 2))

    def run(q, k, v):
        out, lse = block_sparse_attention(q * 1.5, k, v, plan, bias=bias)
        return out * 2, lse

    tensors = qkv(grad=True)
    wanted = run(*tensors)
    found = torch.compile(run, fullgraph=True, backend=compiler)(*tensors)
    grads = [torch.autograd.grad(out.sum() + lse.square().sum(), tensors) for out, lse in (wanted, found)]
    for x, y in zip([*wanted, *grads[0]], [*found, *grads[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_a_plan_made_inside_a_compiled_graph():
    torch._dynamo.reset()

    def run(q, k, v):
        scores = torch.einsum("bnhd,bmhd->bhnm", q[:, ::16], k[:, ::8].repeat_interleave(2, 2))
        plan = BlockPlan.from_indices(scores.detach().topk(3, dim=-1).indices, 40, 52, block_q=16, block_k=8)
        return block_sparse_attention(q, k, v, plan)

    tensors = qkv(grad=True)
    wanted, found = run(*tensors), torch.compile(run, fullgraph=True, backend="eager")(*tensors)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    found[0].sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in tensors)


@pytest.mark.parametrize("with_bias", [False, True])
def test_custom_op_checks(with_bias):
    q, k, v = qkv(grad=True)
    terms = (LowRank(torch.randn(40, 2, requires_grad=True), torch.randn(52, 2)),) if with_bias else ()
    kinds, bias = flatten(terms)
    tables, sizes = ops.tables(window())
    args = (q, k, v, tables, sizes, bias, kinds, 0.25, "auto", True)
    outcome = torch.library.opcheck(torch.ops.genkit.block_sparse.default, args)
    assert set(outcome.values()) == {"SUCCESS"}
    out, lse = torch.ops.genkit.block_sparse(*args)
    plain = [x.detach() for x in (torch.ones_like(out), torch.ones_like(lse), q, k, v, out, lse)]
    outcome = torch.library.opcheck(
        torch.ops.genkit.block_sparse_backward.default,
        (*plain, tables, sizes, [x.detach() for x in bias], kinds, 0.25, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(outcome.values()) == {"SUCCESS"}


def test_plans_are_not_kept_alive_by_the_operator():
    plan = random_plan()
    block_sparse_attention(*qkv(), plan)
    gone = weakref.ref(plan)
    del plan
    gc.collect()
    assert gone() is None


def test_forward_backward_and_compiled_calls_reuse_what_is_cached_on_the_plan(monkeypatch, torch_kernel):
    from genkit.kernels.block_sparse.impl.cpu import schedule as cpu_schedule

    made = []
    build = cpu_schedule._make
    monkeypatch.setattr(cpu_schedule, "_make", lambda plan: made.append(plan) or build(plan))
    plan, tensors = window(), qkv(grad=True)
    for run in (block_sparse_attention, torch.compile(block_sparse_attention, fullgraph=True, backend="eager")):
        run(*tensors, plan)[0].sum().backward()
    assert len(made) == 1 and made[0] is plan


def pooled_by_hand(q, k, v, levels, block, scale, visible=None, bias=None):
    """One query row at a time: every key block as tokens or as means over its visible tokens, ln(count) added, and the
    mean of the tokens' biases (B, H, N, M)."""
    visible = torch.ones(q.shape[0], k.shape[1], dtype=torch.bool) if visible is None else visible
    bias = torch.zeros(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=q.dtype) if bias is None else bias
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[0], q.shape[2], q.shape[1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for n in range(q.shape[1]):
                keys, values, weights, added = [], [], [], []
                for j, level in enumerate(levels[0, h % levels.shape[1], n // block].tolist()):
                    if level:
                        for group in torch.arange(k.shape[1])[j * block : (j + 1) * block].split(level):
                            group = group[visible[b, group]]
                            if len(group):
                                keys.append(k[b, group, h].mean(0))
                                values.append(v[b, group, h].mean(0))
                                weights.append(float(len(group)))
                                added.append(bias[b, h, n, group].mean())
                if not keys:
                    lse[b, h, n] = -torch.inf
                    continue
                logits = torch.stack(keys) @ q[b, n, h] * scale + torch.tensor(weights, dtype=q.dtype).log()
                logits = logits + torch.stack(added)
                out[b, n, h] = logits.softmax(0) @ torch.stack(values)
                lse[b, h, n] = logits.logsumexp(0)
    return out, lse


@pytest.mark.parametrize("n_k", [32, 29])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_pooled_keys_weigh_as_many_keys_as_they_stand_for(n_k, backend):
    q, k, v = (x.detach().requires_grad_() for x in qkv(16, n_k, 2, 2, 4, torch.float64))
    levels = torch.tensor([[[[1, 2, 4, 8], [8, 0, 8, 2]], [[4, 4, 0, 8], [1, 1, 1, 1]]]])
    plan = BlockPlan.from_levels(levels, 16, n_k, block_q=8, block_k=8)
    found = block_sparse_attention(q, k, v, plan, backend=backend)
    wanted = pooled_by_hand(q, k, v, levels, 8, 0.5)
    seeds = [torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape) for x in found]
    grads = [torch.autograd.grad(pair, (q, k, v), seeds) for pair in (found, wanted)]
    for x, y in zip([*found, *grads[0]], [*wanted, *grads[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_hidden_keys_enter_no_mean_and_a_bias_is_the_mean_of_its_keys(backend, ordered):
    """Padded text and a low-rank bias on a pyramid: values and gradients; a group or a row without a key is hidden."""
    draw = torch.Generator().manual_seed(3)
    q, k, v = (x.detach().requires_grad_() for x in qkv(16, 29, 2, 2, 4, torch.float64))
    f, g = (torch.randn(1, n, 2, 3, dtype=torch.float64, generator=draw).requires_grad_() for n in (16, 29))
    levels = torch.tensor([[[[1, 2, 4, 8], [8, 0, 8, 2]], [[4, 4, 0, 8], [1, 1, 1, 1]]]])
    visible = torch.rand(2, 29, generator=draw) > 0.4
    visible[0, :8], visible[1, 16:24] = False, False
    shuffle = torch.randperm(29, generator=draw) if ordered else torch.arange(29)
    place = {"key_order": TokenOrder.from_permutation(shuffle, 8)} if ordered else {}
    plan = BlockPlan.from_levels(levels, 16, 29, block_q=8, block_k=8, key_mask=visible, **place)
    found = block_sparse_attention(q, k, v, plan, backend=backend, bias=LowRank(f, g))
    bias = torch.einsum("bihr,bjhr->bhij", f, g).expand(2, -1, -1, -1)
    moved = [x[:, shuffle] for x in (k, v, visible)]
    wanted = pooled_by_hand(q, *moved[:2], levels, 8, 0.5, moved[2], bias[..., shuffle])
    seeds = [torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape) for x in found]
    grads = [torch.autograd.grad(pair, (q, k, v, f, g), seeds) for pair in (found, wanted)]
    for x, y in zip([*found, *grads[0]], [*wanted, *grads[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_a_row_whose_keys_are_all_hidden_gives_nothing():
    q, k, v = qkv(8, 16, 2, 2)
    visible = torch.arange(16)[None] >= torch.tensor([[0], [16]])
    for level in (1, 2):
        plan = BlockPlan.from_levels(torch.full((1, 1, 1, 2), level), 8, 16, block_q=8, block_k=8, key_mask=visible)
        out, lse = block_sparse_attention(q, k, v, plan)
        assert out[1].eq(0).all() and lse[1].eq(-torch.inf).all() and lse[0].isfinite().all()


def test_pooled_keys_of_the_pyramid_card():
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).view(1, 4, 1, 1)
    v = k * 10
    dense, _ = block_sparse_attention(q, k, v, BlockPlan.dense(1, 4), scale=1.0)
    assert dense.item() == pytest.approx(34.92653, abs=1e-5)
    plan = BlockPlan.from_levels(torch.tensor([[[[1, 2]]]]), 1, 4, block_q=1, block_k=2)
    assert block_sparse_attention(q, k, v, plan, scale=1.0)[0].item() == pytest.approx(32.65789, abs=1e-5)
    assert plan.density() == (0.75, 0.75)


def test_constant_groups_make_any_pyramid_equal_dense():
    q, k, v = qkv(24, 8, 2, 2, 8, torch.float64)
    k, v = (x.repeat_interleave(8, 1) for x in (k, v))
    noise = torch.Generator().manual_seed(5)
    levels = torch.tensor([1, 2, 4, 8])[torch.randint(0, 4, (1, 2, 3, 4), generator=noise)]
    plan = BlockPlan.from_levels(levels, 24, 64, block_q=8, block_k=16)
    order = TokenOrder.from_permutation(torch.randperm(24, generator=noise), 8)
    for given in (plan, BlockPlan.from_levels(levels, 24, 64, order=order, key_order=None, block_k=16)):
        out, lse = block_sparse_attention(q, k, v, given)
        exact = attend(q, k, v, torch.ones(1, 1, 24, 64, dtype=torch.bool), 8**-0.5)
        torch.testing.assert_close(out, exact[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(lse, exact[1], rtol=0, atol=1e-12)


def test_pooled_plans_refuse_what_has_no_meaning():
    plan = BlockPlan.from_levels(torch.tensor([[[[1, 2]]]]), 4, 8, block_q=4, block_k=4)
    q, k, v = qkv(4, 8, 2, 2)
    with pytest.raises(UsageError, match="takes a LowRank bias only"):
        block_sparse_attention(q, k, v, plan, bias=Quadratic(torch.zeros(4, 1), torch.zeros(8, 1), torch.ones(1)))
    with pytest.raises(UsageError, match="key mask must be bool"):
        BlockPlan.from_levels(torch.tensor([[[[1, 2]]]]), 4, 8, block_q=4, block_k=4, key_mask=torch.ones(2, 8))
    with pytest.raises(UsageError, match="no BlockMask"):
        plan.to_block_mask()
    with pytest.raises(UsageError, match="sees no key block"):
        BlockPlan.from_levels(torch.tensor([[[[0, 0]]]]), 4, 8, block_q=4, block_k=4)


def test_bfloat16_stays_bfloat16_on_a_processor_that_multiplies_it(monkeypatch, torch_kernel):
    monkeypatch.setattr(cpu, "has_amx", lambda: True)
    assert cpu.compute_dtype(torch.bfloat16) == torch.bfloat16 and cpu.compute_dtype(torch.float16) == torch.float32
    tensors = qkv(dtype=torch.bfloat16, grad=True)
    exact = attend(*tensors, visible_blocks := random_mask(), 0.25)
    out, lse = block_sparse_attention(*tensors, random_plan(), scale=0.25)
    assert visible_blocks.any() and out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=0.03)
    grads = [torch.autograd.grad(x.double().square().sum(), tensors) for x in (out, exact[0])]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0.1, atol=0.1)


def random_mask():
    states = random_plan().states() > 0
    return states.repeat_interleave(16, 2)[:, :, :40].repeat_interleave(8, 3)[..., :52]


def test_long_rows_are_cut_into_several_calls(monkeypatch, torch_kernel):
    case = make(3)
    whole = BlockPlan.from_dense_blocks(case.keep, case.q.shape[1], case.k.shape[1], off=case.off, **case.sizes)
    with monkeypatch.context() as limits:
        for limit in ("_CHUNK_BYTES", "_SMALL_BYTES", "_SET_BYTES"):
            limits.setattr(cpu_pieces, limit, 1)
        one = block_sparse_attention(case.q, case.k, case.v, whole)
    many = block_sparse_attention(case.q, case.k, case.v, whole)
    torch.testing.assert_close(one[0], many[0], rtol=0, atol=1e-2 if case.q.dtype.itemsize == 2 else 1e-5)


@pytest.mark.parametrize("limit", [None, 1, 4000])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_windows_that_glide_are_one_piece_of_work(key_heads, bias, limit, monkeypatch, nan_memory, torch_kernel):
    from genkit.kernels.block_sparse.impl.cpu.schedule import schedule

    for name in ("_CHUNK_BYTES", "_SMALL_BYTES", "_SET_BYTES") if limit else ():
        monkeypatch.setattr(cpu_pieces, name, limit)
    keep = torch.zeros(1, 1, 9, 14, dtype=torch.bool)
    for row in range(9):  # two blocks with the same keys, four that glide by two key blocks, three at the end
        first = 2 * min(max(row - 1, 0), 5)
        keep[..., row, first : first + 4] = True
    plan = BlockPlan.from_dense_blocks(keep, 70, 110, block_q=8, block_k=8)
    found = [(item.start, item.stop, item.first, item.last, item.count, item.shift) for item in schedule(plan).slices]
    assert found == [(0, 16, 0, 32, 1, 0), (16, 24, 16, 48, 4, 16), (48, 70, 80, 110, 1, 0)]
    tensors = qkv(70, 110, 4, key_heads, dtype=torch.float64, grad=True)
    table = torch.linspace(-1, 1, 4 * 5, dtype=torch.float64).view(4, 5).requires_grad_()
    places = [torch.arange(n)[:, None] * 3 // n for n in (70, 110)]
    terms = [Table((table,), *places)] if bias else []
    results = [block_sparse_attention(*tensors, plan, backend=name, bias=terms) for name in ("cpu", "reference")]
    wanted = [*tensors, *([table] if bias else [])]
    grads = [torch.autograd.grad(out.sin().sum() + lse.cos().sum() * bias, wanted) for out, lse in results]
    for a, b in zip((*results[0], *grads[0]), (*results[1], *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_query_blocks_that_share_most_keys_run_together_and_merge_the_rest(
    dtype, with_lse, monkeypatch, nan_memory, torch_kernel
):
    from genkit.kernels.block_sparse.impl.cpu import schedule as cpu_schedule

    monkeypatch.setattr(cpu_schedule, "_BUNDLE_QUERIES", 32)
    keep = torch.ones(1, 4, 5, 14, dtype=torch.bool)
    for head in range(4):
        for row in range(5):
            keep[0, head, row, 1 + (head + 2 * row) % 11] = False
    keep[0, 3, 3] = keep[0, 3, 2]
    keep[0, 2, 1, ::2] = False
    plan = BlockPlan.from_dense_blocks(keep, 72, 110, block_q=16, block_k=8)
    work = cpu_schedule.schedule(plan)
    # too little in common in rows 0 and 1 of head 2; nothing besides in rows 2 and 3 of head 3; row 4 is alone
    assert sum(len(group.rows) for group in work.gathered if group.queries == 32) == 7
    assert sum(len(group.rows) for group in work.gathered if group.adds) == 12 and work.merges
    tensors = qkv(72, 110, dtype=dtype, grad=True)
    seen = keep.repeat_interleave(16, 2)[:, :, :72].repeat_interleave(8, 3)[..., :110]
    exact = attend(*(x.double() for x in tensors), seen, 0.25)
    found = block_sparse_attention(*tensors, plan, scale=0.25, backend="cpu")
    incoming = [torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape) for x in exact][: 1 + with_lse]
    wanted = torch.autograd.grad(exact[: 1 + with_lse], tensors, incoming)
    given = [x.to(y.dtype) for x, y in zip(incoming, found[: 1 + with_lse], strict=True)]
    given = torch.autograd.grad(found[: 1 + with_lse], tensors, given)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-2
    for x, y in zip([*found, *given], [*exact, *wanted], strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=tolerance, atol=tolerance)


def test_addresses_beyond_two_to_the_31_are_counted_in_64_bits():
    order = TokenOrder.from_grid((8,), (4,))
    assert order.gather.dtype == order.inverse.dtype == torch.int64
    from genkit.kernels.block_sparse.impl.cpu.schedule import schedule

    plan = random_plan()
    assert all(group.blocks.dtype == torch.int64 for group in schedule(plan).gathered)
