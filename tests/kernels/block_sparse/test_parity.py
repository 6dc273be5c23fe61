"""Every backend against brute force in float64: output, log-sum-exp and all gradients, over generated problems."""

from __future__ import annotations

import pytest
import torch
from cases import bit_tiles, make
from oracle import gradients, magnitudes
from tolerance import assert_close

from genkit.errors import UsageError
from genkit.kernels import BlockPlan, block_sparse_attention, why_not


def build(case):
    """The plan of a case, or None where a row sees no key and the builder must refuse."""
    if case.rule is None:
        return BlockPlan.from_dense_blocks(case.keep, case.q.shape[1], case.k.shape[1], off=case.off, **case.sizes)
    off = case.rule.off_queries()
    if bool((~case.mask.any(-1) & ~off).any()):
        with pytest.raises(UsageError, match="sees no key"):
            BlockPlan.from_rule(case.rule, **case.sizes)
        return BlockPlan.from_rule(case.rule, **case.sizes, check=False)
    return BlockPlan.from_rule(case.rule, **case.sizes)


def check(seed: int, backend: str, with_gradients: bool = True, plan_of=build) -> None:
    case = make(seed)
    plan = plan_of(case)
    noise = torch.Generator().manual_seed(seed)
    d_out = torch.randn(case.q.shape, generator=noise).to(case.q.dtype)
    d_lse = torch.randn(case.q.shape[0], case.q.shape[2], case.q.shape[1], generator=noise) if case.use_lse else None
    exact = gradients(case, torch.float64, d_out, d_lse)
    eager = gradients(case, case.q.dtype, d_out, d_lse)
    terms = magnitudes(case, d_out, d_lse)
    inputs = [x.detach().requires_grad_(with_gradients) for x in (case.q, case.k, case.v)]
    out, lse = block_sparse_attention(*inputs, plan, scale=case.scale, backend=backend)
    assert out.dtype == case.q.dtype
    assert lse.dtype == (torch.float64 if case.q.dtype == torch.float64 else torch.float32)
    label = f"seed {seed} ({case.q.dtype}, {backend})"
    assert_close(out, exact[0], eager[0], f"{label} out", terms[0])
    assert_close(lse, exact[1], eager[1], f"{label} lse", terms[1])
    if with_gradients:
        outputs, incoming = ([out, lse], [d_out, d_lse.to(lse.dtype)]) if case.use_lse else ([out], [d_out])
        found = torch.autograd.grad(outputs, inputs, incoming)
        for name, *row in zip("qkv", found, exact[2:], eager[2:], terms[2:], strict=True):
            assert_close(*row[:3], f"{label} d{name}", row[3])


@pytest.mark.parametrize("start", range(0, 540, 20))
def test_cpu_equals_brute_force(start, nan_memory):
    for seed in range(start, start + 20):
        check(seed, "cpu")


@pytest.mark.parametrize("start", range(0, 540, 20))
def test_torchs_kernel_on_the_cpu_equals_brute_force(start, nan_memory, torch_kernel):
    for seed in range(start, start + 20):
        check(seed, "cpu")


@pytest.mark.parametrize("start", range(1000, 1060, 20))
def test_reference_equals_brute_force(start):
    for seed in range(start, start + 20):
        check(seed, "reference")


@pytest.mark.parametrize("start", range(2000, 2020, 10))
def test_flex_equals_brute_force(start):
    ran = 0
    for seed in range(start, start + 10):
        case = make(seed)
        if case.q.dtype in (torch.float32, torch.float64):
            assert why_not("flex", case.q, case.k, case.v, build(case)) is None
            check(seed, "flex", with_gradients=False)
            ran += 1
    assert ran


@pytest.mark.parametrize("start", range(4000, 4060, 20))
def test_bit_tiles_on_the_cpu_equal_brute_force(start, nan_memory):
    for seed in range(start, start + 20):
        check(seed, "cpu", plan_of=bit_tiles)


@pytest.mark.parametrize("start", range(4100, 4160, 20))
def test_bit_tiles_in_torchs_kernel_equal_brute_force(start, nan_memory, torch_kernel):
    for seed in range(start, start + 20):
        check(seed, "cpu", plan_of=bit_tiles)


def test_bit_tiles_in_the_reference_equal_brute_force():
    for seed in range(4200, 4220):
        check(seed, "reference", plan_of=bit_tiles)


def test_bit_tiles_in_flex_equal_brute_force():
    exact = [seed for seed in range(4300, 4315) if make(seed).q.dtype in (torch.float32, torch.float64)]
    assert len(exact) > 4
    for seed in exact:
        check(seed, "flex", with_gradients=False, plan_of=bit_tiles)
