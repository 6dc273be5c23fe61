"""Native kernels on the CPU: against brute force in float64, the code itself, threads, memory limits."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import Dice
from oracle import Case, attend, gradients, magnitudes, spread, visible
from tolerance import assert_close

from genkit.kernels import ALL, NONE, WINDOW, BlockPlan, LowRank, Quadratic, Rule, Table, block_sparse_attention
from genkit.kernels.block_sparse.impl.cpu import backend as cpu
from genkit.kernels.block_sparse.impl.cpu import plan_lists
from genkit.kernels.native import batch, compiler, library
from genkit.kernels.native import kinds as native_kinds
from genkit.kernels.native.attention import bias as native_bias
from genkit.kernels.native.attention import passes as native
from genkit.kernels.native.library import KINDS
from genkit.kernels.plan.visibility import rule_groups


def why_not(kind: str) -> str | None:
    return library.processor_why_not(kind) or (None if library.compilers() else "no C++ compiler")


REFUSED = {
    **{kind: compiler.why_not(kind) for kind in ("vectors", "tiles")},
    **{kind: why_not(kind) for kind in KINDS},
}
RUNS = {  # what the switch asks for, and the numbers: with bfloat16 the emitted kernels are tiles, or vectors widen it
    "vectors": ("emitted", torch.float32),
    "tiles": ("emitted", torch.bfloat16),
    **{kind: (kind, torch.float32) for kind in KINDS},
}
kinds = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(run, id=kind, marks=pytest.mark.skipif(REFUSED[kind] is not None, reason=f"{REFUSED[kind]}"))
        for kind, run in RUNS.items()
    ],
    indirect=True,
)
widened = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.skipif(REFUSED[kind] is not None, reason=f"{REFUSED[kind]}"))
        for kind in RUNS
        if kind != "tiles"
    ],
)
DIMS = (32, 40, 64, 80, 96, 128, 160)


@pytest.fixture
def dtype(request, monkeypatch):
    """The numbers of a run, with the switch set to its kernels."""
    switch, numbers = request.param
    monkeypatch.setenv(native_kinds.SWITCH, switch)
    return numbers


def make(seed: int, dtype: torch.dtype) -> tuple[Case, BlockPlan]:
    """A problem with blocks that native kernels take, most of them whole units of keys."""
    dice = Dice(seed)
    n_q, n_k = dice.between(1, 400), dice.between(1, 400)
    batches, key_heads, group, width = dice.between(1, 2), dice.between(1, 3), dice.pick((1, 1, 2, 3)), dice.pick(DIMS)
    q = dice.normal(batches, n_q, key_heads * group, width) * dice.pick((1.0, 4.0, 16.0))
    k, v = (dice.normal(batches, n_k, key_heads, width) for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if dice.share(0.3).item():
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    blocks_k = (8, 28, 32, 64, 96, 120, 128) if dtype == torch.bfloat16 else (4, 5, 8, 13, 28, 40, 96, 112, 128)
    sizes = {"block_q": dice.pick((16, 32, 48, 64, 100, 256)), "block_k": dice.pick(blocks_k)}
    scale = width**-0.5
    if seed % 2:
        rule = hidden_tokens(dice, n_q, n_k)
        if dice.share(0.3).item():
            rule = rule.hide_keys(dice.share(0.8, batches, n_k))
        case = Case(seed, q, k, v, visible(rule), scale, rule=rule, sizes=sizes)
        plan = BlockPlan.from_rule(rule, check=False, **sizes)
    else:
        shape = (
            dice.pick((1, batches)),
            dice.pick((1, q.shape[2])),
            -(-n_q // sizes["block_q"]),
            -(-n_k // sizes["block_k"]),
        )
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


@kinds
@pytest.mark.parametrize("start", range(0, 120, 20))
def test_generated_problems_equal_brute_force(dtype, start, nan_memory):
    for seed in range(start, start + 20):
        compare(seed, dtype)


@widened
@pytest.mark.parametrize("numbers", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_widened_for_vectors(kind, numbers, monkeypatch, nan_memory):
    monkeypatch.setenv(native_kinds.SWITCH, RUNS[kind][0])
    monkeypatch.setattr(native_kinds, "with_tiles", lambda dtype: False)
    for seed in range(12):
        compare(seed, numbers)


def compare(seed: int, dtype: torch.dtype) -> None:
    case, plan = make(seed, dtype)
    assert native.why_not(case.q, plan, case.scale) is None
    found, d_out, d_lse = run(case, plan)
    exact, eager = (gradients(case, kind, d_out, d_lse) for kind in (torch.float64, dtype))
    assert [x.dtype for x in found] == [dtype, torch.float32, *[dtype] * 3]
    names, terms = ("out", "lse", "dq", "dk", "dv"), magnitudes(case, d_out, d_lse)
    for name, *row in zip(names, found, exact, eager, terms, strict=True):
        assert_close(*row[:3], f"seed {seed} {name}", row[3])


@pytest.mark.parametrize(
    "numbers, units", [(torch.float32, {4, 8, 16, 28, 40, 48, 56, 64}), (torch.bfloat16, {32, 64})]
)
def test_the_generated_problems_hold_what_is_hard(numbers, units):
    made = [make(seed, numbers) for seed in range(120)]
    assert {case.q.shape[-1] for case, _ in made} == set(DIMS)
    assert {plan_lists.PlanLists(plan, numbers == torch.bfloat16).unit for _, plan in made} == units
    assert any(plan.batch > 1 for _, plan in made) and any(plan.heads > 1 for _, plan in made)
    assert any(bool(plan.off.any()) for _, plan in made)
    assert any(bool(plan.full_count.any()) and bool(plan.partial_count.any()) for _, plan in made)
    assert any(case.q.shape[2] > case.k.shape[2] for case, _ in made)


def bias(kind: str, n_q: int, n_k: int, heads: int):
    """A bias and the tables of it that may be trained."""
    noise = torch.Generator().manual_seed(1)
    if kind == "low rank":
        f, g = (torch.randn(2, n, heads, 3, generator=noise).requires_grad_() for n in (n_q, n_k))
        return LowRank(f, g), [f, g]
    if kind == "quadratic":
        places = (torch.rand(n, 2, generator=noise) for n in (n_q, n_k))
        weight = torch.rand(heads, 2, generator=noise).requires_grad_()
        return Quadratic(*places, weight), [weight]
    places = [torch.arange(n)[:, None] // 40 for n in (n_q, n_k)]
    values = torch.randn(heads, 5, generator=noise).requires_grad_()
    return Table((values,), *places), [values]


@kinds
@pytest.mark.parametrize("kind", ["low rank", "quadratic", "table"])
@pytest.mark.parametrize("limit", [1, 1 << 30])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_bias_is_added_and_trained(dtype, kind, limit, heads, nan_memory, monkeypatch):
    noise = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, h, 64, generator=noise).to(dtype).requires_grad_()
        for n, h in ((300, heads), (270, -(-heads // 2)), (270, -(-heads // 2)))
    )
    plan = BlockPlan.from_rule(hidden_tokens(Dice(1), 300, 270), block_q=100, block_k=64, check=False)
    term, tables = bias(kind, 300, 270, heads)
    monkeypatch.setattr(native_bias, "_BYTES", limit)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = block_sparse_attention(q, k, v, plan, bias=term, backend="cpu")
    wanted = block_sparse_attention(*(x.double() for x in (q, k, v)), plan, bias=term, backend="reference")
    incoming = [torch.randn(x.shape, generator=noise, dtype=torch.float64) for x in wanted]
    incoming[1][wanted[1] == -torch.inf] = 0
    try:
        narrow = [x.to(y.dtype) for x, y in zip(incoming, found, strict=True)]
        given = torch.autograd.grad(found, (q, k, v, *tables), narrow)
    finally:
        torch.set_num_threads(before)
    exact = torch.autograd.grad(wanted, (q, k, v, *tables), incoming)
    rough = 0.02 if dtype == torch.bfloat16 else 1e-5
    for a, b in zip((*found, *given), (*wanted, *exact), strict=True):
        reach = b[b.isfinite()].abs().max().item()
        torch.testing.assert_close(a.double(), b.double(), rtol=rough, atol=rough * max(1.0, reach))


@kinds
def test_a_bias_hides_keys_from_the_backward_pass_too(dtype):
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 200, 2, 64, generator=noise).to(dtype).requires_grad_() for _ in range(3))
    hidden = torch.where(torch.arange(200) < 150, 0.0, -torch.inf)[None, :, None, None]
    term = LowRank(torch.ones(1, 200, 1, 1), hidden)
    out, _ = block_sparse_attention(q, k, v, BlockPlan.dense(200, 200), bias=term, backend="cpu")
    fewer, _ = block_sparse_attention(q, k[:, :150], v[:, :150], BlockPlan.dense(200, 150), backend="cpu")
    incoming = torch.randn(out.shape, generator=noise).to(dtype)
    rough = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out, fewer, rtol=rough, atol=rough)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), incoming) for x in (out, fewer)), strict=True):
        torch.testing.assert_close(a, b, rtol=rough, atol=5 * rough)
        assert a.isfinite().all()


@kinds
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_threads_memory_limits_and_torchs_own_tiles_change_nothing(dtype, seed, monkeypatch):
    case, plan = make(seed, dtype)
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
        for owner, name in ((native, "_SET_BYTES"), (plan_lists, "_KEPT_BYTES"), (plan_lists, "_SPAN_BYTES")):
            monkeypatch.setattr(owner, name, 1)
        plan.cache.clear()
        limited, _, _ = run(case, plan)
        kept = (parts for key, found in plan.cache.items() if "native" in key[0] for parts in found.values())
        assert all(len(part.bits) == 1 for parts in kept for part in parts)
    finally:
        torch.set_num_threads(before)
    for name, a, b, c in zip(("out", "lse", "dq", "dk", "dv"), expected, threaded, limited, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c), name
    assert torch.equal(left @ left, product)


@kinds
def test_gradients_added_up_in_shares_do_not_depend_on_the_number_of_threads(dtype):
    noise = torch.Generator().manual_seed(0)
    n = 3 * native._SHARED_QUERIES + 50
    q, k, v = (torch.randn(1, size, 1, 32, generator=noise).to(dtype).requires_grad_() for size in (n, 300, 300))
    plan = BlockPlan.from_dense_blocks(torch.rand(-(-n // 64), 5, generator=noise) < 0.7, n, 300, check=False)
    incoming, found = torch.randn(q.shape, generator=noise).to(dtype), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, _ = block_sparse_attention(q, k, v, plan, backend="cpu")
            found.append((out, *torch.autograd.grad(out, (q, k, v), incoming)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more, strict=True))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact, _ = block_sparse_attention(*wide, plan, backend="reference")
    rough = 0.03 if dtype == torch.bfloat16 else 1e-4
    for a, b in zip(found[0][1:], torch.autograd.grad(exact, wide, incoming.double()), strict=True):
        assert (a.double() - b).abs().max() <= rough * b.abs().max()


@kinds
def test_a_value_that_is_no_number_stays_visible(dtype):
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 128, 1, 64, generator=noise).to(dtype) for _ in range(3))
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


@kinds
def test_it_is_what_the_cpu_backend_runs(dtype, monkeypatch):
    case, plan = make(2, dtype)
    expected = attend(case.q, case.k, case.v, case.mask, case.scale)
    calls = []
    real = native.forward
    monkeypatch.setattr(native, "forward", lambda *given: calls.append(given) or real(*given))
    found = cpu.forward(case.q, case.k, case.v, plan, case.scale, ())
    monkeypatch.setenv(native_kinds.SWITCH, "torch")
    without = cpu.forward(case.q, case.k, case.v, plan, case.scale, ())
    assert len(calls) == 1
    rough = 0.03 if dtype == torch.bfloat16 else 1e-4
    for out, lse in (found, without):
        torch.testing.assert_close(out.double(), expected[0], rtol=rough, atol=rough)
        torch.testing.assert_close(lse.double(), expected[1], rtol=rough, atol=rough)


def test_reasons_to_leave_it_to_torch(monkeypatch):
    q, plan = torch.zeros(1, 64, 1, 64), BlockPlan.dense(64, 64)
    assert "float64" in native.why_not(q.double(), plan, 1.0)
    assert "blocks of 64x3" in native.why_not(q, BlockPlan.dense(64, 64, block_k=3), 1.0)
    assert "blocks of 8x64" in native.why_not(q, BlockPlan.dense(64, 64, block_q=8), 1.0)
    assert "head dim 288" in native.why_not(q.new_zeros(1, 64, 1, 288), plan, 1.0)
    assert "not positive" in native.why_not(q, plan, 0.0)
    monkeypatch.setattr(compiler, "why_not", lambda kind: None)
    assert native.with_tiles(torch.bfloat16) and not native.with_tiles(torch.float16)
    assert "below 16x8" in native.why_not(q.bfloat16(), BlockPlan.dense(64, 64, block_k=5), 1.0)
    for name in (*KINDS, "torch"):
        monkeypatch.setenv(native_kinds.SWITCH, name)
        assert not native.with_tiles(torch.bfloat16)
    assert "GENKIT_CPU_KERNELS=torch" in native.why_not(q, plan, 1.0)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_lists_that_are_made_together_are_those_made_one_by_one(seed, tiles, monkeypatch):
    case, plan = make(seed, torch.float32)
    told = {}
    for together in (0, 1 << 20):
        monkeypatch.setattr(plan_lists, "_TOGETHER", together)
        lists = plan_lists.PlanLists(replace(plan, cache={}), tiles)
        told[together] = []
        for entry, head in product(range(case.q.shape[0]), range(case.q.shape[2])):
            for part in lists.visits(entry, head):
                first, last = part.starts[0], part.starts[-1]
                masks = part.masks[first:last]
                bits = torch.where((masks < 0)[:, None, None], -1, part.bits[masks.clamp(min=0).long()])
                told[together].append((part.starts - first, part.units[first:last], bits, part.valid, part.pieces(3)))
        # all of one set of rules share their tables
        assert len(
            {part.units.data_ptr() for made in lists.plan.cache["native", lists.unit].values() for part in made}
        ) <= (rule_groups(plan) if together else plan.batch * plan.heads * rule_groups(plan))
    for one, many in zip(*told.values(), strict=True):
        assert one[-1] == many[-1]
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], many[:-1], strict=True))


@pytest.mark.parametrize(
    "length, vectors, tiles",
    [
        (64, (64, 64), (64, 64)),
        (28, (28, 28), (32, 32)),
        (13, (16, 16), (32, 32)),
        (112, (56, 112), (64, 128)),
        (120, (60, 120), (64, 128)),
        (96, (48, 96), (32, 96)),
        (8, (8, 8), (32, 32)),
        (4, (4, 4), (32, 32)),
        (2, (4, 4), (32, 32)),
        (68, (36, 72), (32, 96)),
        (128, (64, 128), (64, 128)),
    ],
)
def test_blocks_of_any_length_are_cut_into_units(length, vectors, tiles):
    plan = BlockPlan.dense(64, 300, block_k=length)
    for wanted, with_tiles in ((vectors, False), (tiles, True)):
        found = plan_lists.PlanLists(plan, with_tiles)
        assert found.tiles == with_tiles and (found.unit, found.length) == wanted
        assert found.slots == found.length * plan.blocks_k
        keys = torch.arange(300.0).view(1, 300, 1)
        into = torch.zeros(1, found.slots, 1)
        found.place(keys, into)
        assert torch.equal(found.collect(into), keys)
        assert torch.equal(found.tokens, into.flatten().long())


def test_a_machine_that_cannot_says_why(monkeypatch):
    why_not = compiler.why_not.__wrapped__
    monkeypatch.setattr(compiler.platform, "machine", lambda: "aarch64")
    assert "aarch64" in why_not("vectors")
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    monkeypatch.setattr(compiler.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiler.platform, "system", lambda: "Linux")
    assert "llvmlite" in why_not("vectors")
    monkeypatch.setattr(compiler, "why_not", lambda kind: "for this test")
    with pytest.raises(RuntimeError, match="for this test"):
        compiler.compiled(None, "tiles", (), 0)


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(
    "kind, dim, unit", [("tiles", 64, 64), ("tiles", 128, 32), ("vectors", 64, 64), ("vectors", 80, 28)]
)
def test_the_code_keeps_vectors_in_registers(name, kind, dim, unit):
    """On any machine: the kernels compile, multiply as often as they should, and seldom put a vector on the stack."""
    pytest.importorskip("llvmlite")
    from genkit.kernels.native.attention.backward import Backward
    from genkit.kernels.native.attention.forward import Forward
    from genkit.kernels.native.attention.products import Tiles, Vectors

    walk = (Forward if name == "forward" else Backward)(dim, unit, Tiles if kind == "tiles" else Vectors)
    module, machine = compiler.assembled(walk.module(), kind)
    lines = machine.emit_assembly(module).splitlines()
    if kind == "tiles":
        # products of a part's visit: once for either part inside the loop, and once before it or after it
        once = (dim // 32) * (unit // 32) * 4
        assert sum("tdpbf16ps" in line for line in lines) == once * (6 if name == "forward" else 15)
    else:
        assert not any("tdpbf16ps" in line or "tmm" in line for line in lines)
    stored = sum(bool(re.search(r"%zmm\d+, \d*\(%rsp\)", line)) for line in lines)
    assert sum("%zmm" in line for line in lines) > 500
    assert stored <= 100
