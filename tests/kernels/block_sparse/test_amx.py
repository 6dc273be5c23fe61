"""bfloat16 with AMX tiles: against brute force in float64, the code itself, threads, memory limits."""

from __future__ import annotations

import re

import pytest
import torch
from cases import Dice
from oracle import Case, attend, gradients, magnitudes, spread, visible
from tolerance import assert_close

from genkit.kernels import ALL, NONE, WINDOW, BlockPlan, LowRank, Quadratic, Rule, Table, block_sparse_attention
from genkit.kernels.amx import batch, compiler
from genkit.kernels.block_sparse import amx, amx_visits, cpu

here = pytest.mark.skipif(compiler.why_not() is not None, reason=f"no AMX kernel can run: {compiler.why_not()}")
DIMS = (32, 40, 64, 80, 96, 128, 160)


def make(seed: int) -> tuple[Case, BlockPlan]:
    """A problem in bfloat16 with blocks that AMX kernels take."""
    dice = Dice(seed)
    n_q, n_k = dice.between(1, 400), dice.between(1, 400)
    batches, key_heads, group, width = dice.between(1, 2), dice.between(1, 3), dice.pick((1, 1, 2, 3)), dice.pick(DIMS)
    q = dice.normal(batches, n_q, key_heads * group, width) * dice.pick((1.0, 4.0, 16.0))
    k, v = (dice.normal(batches, n_k, key_heads, width) for _ in range(2))
    q, k, v = (x.bfloat16() for x in (q, k, v))
    if dice.share(0.3).item():
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    sizes = {"block_q": dice.pick((16, 32, 48, 64, 100, 256)), "block_k": dice.pick((32, 64, 96, 128))}
    scale = width ** -0.5
    if seed % 2:
        rule = hidden_tokens(dice, n_q, n_k)
        if dice.share(0.3).item():
            rule = rule.hide_keys(dice.share(0.8, batches, n_k))
        case = Case(seed, q, k, v, visible(rule), scale, rule=rule, sizes=sizes)
        plan = BlockPlan.from_rule(rule, check=False, **sizes)
    else:
        shape = (dice.pick((1, batches)), dice.pick((1, q.shape[2])), -(-n_q // sizes["block_q"]),
                 -(-n_k // sizes["block_k"]))
        keep, off = dice.share(dice.pick((0.3, 0.6, 1.0)), *shape), dice.share(0.1, *shape[:3])
        mask = spread(keep & ~off[..., None], torch.arange(n_q), torch.arange(n_k), **sizes)
        case = Case(seed, q, k, v, mask, scale, keep=keep, off=off, sizes=sizes)
        plan = BlockPlan.from_dense_blocks(keep, n_q, n_k, off=off, check=False, **sizes)
    case.use_lse = bool(dice.share(0.4))
    return case, plan


def hidden_tokens(dice: Dice, n_q: int, n_k: int) -> Rule:
    """Windows along one axis, with groups of tokens that see all, none or their window."""
    where = torch.arange(n_q)[:, None] * n_k // n_q
    low = where - dice.between(0, 150)
    groups = dice.between(1, 3)
    table = dice.ints(0, 2, groups, groups)
    table[:, 0] = dice.pick((ALL, WINDOW))
    if dice.share(0.3).item():
        table[-1] = NONE
    q_group, k_group = (dice.ints(0, groups - 1, n // 50 + 1).repeat_interleave(50)[:n] for n in (n_q, n_k))
    return Rule(low, where + dice.between(1, 150), torch.arange(n_k)[:, None], q_group, k_group, table)


def run(case: Case, plan: BlockPlan) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """[out, lse, dq, dk, dv] of the operator, and the gradients that came in."""
    noise = torch.Generator().manual_seed(case.seed)
    d_out = torch.randn(case.q.shape, generator=noise).to(case.q.dtype)
    d_lse = torch.randn(case.q.shape[0], case.q.shape[2], case.q.shape[1], generator=noise) if case.use_lse else None
    inputs = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = block_sparse_attention(*inputs, plan, scale=case.scale, backend="cpu")
    outputs, incoming = ([out, lse], [d_out, d_lse]) if case.use_lse else ([out], [d_out])
    return [out, lse, *torch.autograd.grad(outputs, inputs, incoming)], d_out, d_lse


@here
@pytest.mark.parametrize("start", range(0, 120, 20))
def test_generated_problems_equal_brute_force(start, nan_memory):
    for seed in range(start, start + 20):
        case, plan = make(seed)
        assert amx.why_not(case.q, plan, case.scale) is None
        found, d_out, d_lse = run(case, plan)
        exact, eager = (gradients(case, dtype, d_out, d_lse) for dtype in (torch.float64, torch.bfloat16))
        assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * 3]
        for name, *row in zip(("out", "lse", "dq", "dk", "dv"), found, exact, eager, magnitudes(case, d_out, d_lse),
                              strict=True):
            assert_close(*row[:3], f"seed {seed} {name}", row[3])


@here
def test_the_generated_problems_hold_what_is_hard():
    made = [make(seed) for seed in range(120)]
    assert {case.q.shape[-1] for case, _ in made} == set(DIMS)
    assert {amx_visits.unit_of(plan) for _, plan in made} == {32, 64}
    assert any(plan.batch > 1 for _, plan in made) and any(plan.heads > 1 for _, plan in made)
    assert any(bool(plan.off.any()) for _, plan in made)
    assert any(bool(plan.full_count.any()) and bool(plan.partial_count.any()) for _, plan in made)
    assert any(case.q.shape[2] > case.k.shape[2] for case, _ in made)


def bias(kind: str, n_q: int, n_k: int, heads: int):
    noise = torch.Generator().manual_seed(1)
    if kind == "low rank":
        return LowRank(*(torch.randn(2, n, heads, 3, generator=noise) for n in (n_q, n_k)))
    if kind == "quadratic":
        places = (torch.rand(n, 2, generator=noise) for n in (n_q, n_k))
        return Quadratic(*places, torch.rand(heads, 2, generator=noise))
    places = [torch.arange(n)[:, None] // 40 for n in (n_q, n_k)]
    return Table((torch.randn(heads, 5, generator=noise),), *places)


@here
@pytest.mark.parametrize("kind", ["low rank", "quadratic", "table"])
def test_a_bias_is_added(kind, nan_memory, monkeypatch):
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 64, generator=noise).bfloat16().requires_grad_()
               for n, h in ((300, 4), (270, 2), (270, 2)))
    plan = BlockPlan.from_rule(hidden_tokens(Dice(1), 300, 270), block_q=100, block_k=64, check=False)
    term = bias(kind, 300, 270, 4)
    with_bias = block_sparse_attention(q, k, v, plan, bias=term, backend="cpu")
    monkeypatch.setattr(amx, "_BIAS_BYTES", 1)
    one_by_one = block_sparse_attention(q, k, v, plan, bias=term, backend="cpu")
    reference = block_sparse_attention(*(x.double() for x in (q, k, v)), plan, bias=term, backend="reference")
    incoming = torch.randn(q.shape, generator=noise).bfloat16()
    for out, lse in (with_bias, one_by_one):
        torch.testing.assert_close(out.double(), reference[0], rtol=0.02, atol=0.02)
        torch.testing.assert_close(lse.double(), reference[1], rtol=1e-3, atol=1e-3)
        found = torch.autograd.grad(out, (q, k, v), incoming)
        wanted = torch.autograd.grad(reference[0], (q, k, v), incoming.double(), retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=0.05, atol=0.05)


@here
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_threads_memory_limits_and_torchs_own_tiles_change_nothing(seed, monkeypatch):
    case, plan = make(seed)
    before = torch.get_num_threads()
    left = torch.randn(300, 300).bfloat16()
    product = left @ left
    try:
        torch.set_num_threads(1)
        expected, _, _ = run(case, plan)
        torch.set_num_threads(3)
        threaded, _, _ = run(case, plan)
        assert all(torch.equal(a, b) for a, b in zip(threaded, run(case, plan)[0], strict=True))
        monkeypatch.setattr(batch, "_openmp", lambda: None)
        assert all(torch.equal(a, b) for a, b in zip(threaded, run(case, plan)[0], strict=True))
        for owner, name in ((amx, "_SET_BYTES"), (amx_visits, "_KEPT_BYTES"), (amx_visits, "_SPAN_BYTES")):
            monkeypatch.setattr(owner, name, 1)
        plan.cache.clear()
        limited, _, _ = run(case, plan)
        assert not any(part.bits.numel() for parts in plan.cache["amx"].values() for part in parts)
    finally:
        torch.set_num_threads(before)
    for name, a, b, c in zip(("out", "lse", "dq", "dk", "dv"), expected, threaded, limited, strict=True):
        if name in ("dk", "dv"):  # each thread has its own sums
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
            torch.testing.assert_close(a, c, rtol=0.02, atol=0.02)
        else:
            assert torch.equal(a, b) and torch.equal(a, c), name
    assert torch.equal(left @ left, product)


@here
def test_a_value_that_is_no_number_stays_visible():
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 128, 1, 64, generator=noise).bfloat16() for _ in range(3))
    keep = torch.tensor([[True, False], [True, True]])
    plan = BlockPlan.from_dense_blocks(keep, 128, 128)
    k[0, 70, 0, 3] = float("nan")
    out, lse = block_sparse_attention(q, k, v, plan, backend="cpu")
    assert out[:, :64].isfinite().all() and lse[..., :64].isfinite().all()
    assert out[:, 64:].isnan().all() and lse[..., 64:].isnan().all()
    k[0, 70, 0, 3] = 0
    q[0, 5, 0, 1] = float("nan")
    out, lse = block_sparse_attention(q, k, v, plan, backend="cpu")
    assert out[0, 5].isnan().all() and lse[0, 0, 5].isnan()
    assert out[0, 6:].isfinite().all() and out[0, :5].isfinite().all()


@here
def test_it_is_what_the_cpu_backend_runs(monkeypatch):
    case, plan = make(2)
    expected = attend(case.q, case.k, case.v, case.mask, case.scale)
    calls = []
    real = amx.forward
    monkeypatch.setattr(amx, "forward", lambda *given: calls.append(given) or real(*given))
    with_tiles = cpu.forward(case.q, case.k, case.v, plan, case.scale, ())
    monkeypatch.setattr(compiler, "why_not", lambda: "for this test")
    without = cpu.forward(case.q, case.k, case.v, plan, case.scale, ())
    assert len(calls) == 1
    for out, lse in (with_tiles, without):
        torch.testing.assert_close(out.double(), expected[0], rtol=0.03, atol=0.03)
        torch.testing.assert_close(lse.double(), expected[1], rtol=1e-2, atol=1e-2)


def test_reasons_to_leave_it_to_torch():
    q = torch.zeros(1, 64, 1, 64, dtype=torch.bfloat16)
    plan = BlockPlan.dense(64, 64)
    assert "float32" in amx.why_not(q.float(), plan, 1.0)
    assert "block_k=48" in amx.why_not(q, BlockPlan.dense(64, 64, block_k=48), 1.0)
    assert "block_q=8" in amx.why_not(q, BlockPlan.dense(64, 64, block_q=8), 1.0)
    assert "head dim 288" in amx.why_not(q.new_zeros(1, 64, 1, 288), plan, 1.0)
    assert "not positive" in amx.why_not(q, plan, 0.0)


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("dim, unit", [(64, 64), (128, 32), (256, 64)])
def test_the_code_keeps_vectors_in_registers(kind, dim, unit):
    """On any machine: the kernels compile, multiply as often as they should, and seldom put a vector on the stack."""
    pytest.importorskip("llvmlite")
    from genkit.kernels.block_sparse.amx_backward import Backward
    from genkit.kernels.block_sparse.amx_forward import Forward

    module, machine = compiler.assembled((Forward if kind == "forward" else Backward)(dim, unit).module())
    lines = machine.emit_assembly(module).splitlines()
    # products of a half's visit: once for either half inside the loop, and once before it or after it
    once = (dim // 32) * (unit // 32) * 4
    assert sum("tdpbf16ps" in line for line in lines) == once * (6 if kind == "forward" else 15)
    stored = sum(bool(re.search(r"%zmm\d+, \d*\(%rsp\)", line)) for line in lines)
    assert sum("%zmm" in line for line in lines) > 1000
    assert stored <= (100 if kind == "forward" else 0)
