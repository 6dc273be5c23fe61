"""Scores from int8 queries and keys in Triton's interpreter. test_triton.py runs it in a process of its own."""

from __future__ import annotations

import pytest
import torch
from cases import bit_tiles, make
from oracle import attend
from test_parity import build
from triton_checks import cost, tensors

from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, Quadratic, Rule, block_sparse_attention, why_not
from genkit.kernels.block_sparse.impl.triton_int8.quantise import quantise, split_mean


def rounded(q, k):
    """What the int8 queries and keys stand for, in float64, and the mean of the keys."""
    keys, mean = split_mean(k)
    found = []
    for x in (q, keys):
        whole, step = quantise(x)
        found.append(whole.double() * step.transpose(1, 2)[..., None].double())
    return *found, mean.double()


def exact(q, k, v, mask, scale):
    """Attention of the rounded queries and keys with brute force."""
    near_q, near_k, mean = rounded(q, k)
    out, lse = attend(near_q, near_k, v.double(), mask, scale, None, dtype=torch.float64)
    shift = torch.einsum("bnhd,bhd->bhn", q.double(), mean[:, 0].repeat_interleave(q.shape[2] // k.shape[2], 1))
    return out, lse + scale * shift


@pytest.mark.parametrize("plan_of", [build, bit_tiles], ids=["as stated", "bit tiles"])
def test_generated_problems(plan_of, nan_memory):
    ran = spent = 0
    for seed in range(4000, 4200):
        case = make(seed)
        if case.q.dtype not in (torch.float32, torch.float16):
            continue
        work = cost(case, plan_of(case))
        if work > 16 or spent + work > 60:
            continue
        spent, ran = spent + work, ran + 1
        with torch.no_grad():
            out, lse = block_sparse_attention(
                case.q, case.k, case.v, plan_of(case), scale=case.scale, backend="triton_int8"
            )
        wanted, wanted_lse = exact(case.q, case.k, case.v, case.mask, case.scale)
        near = 2e-3 if case.q.dtype == torch.float16 else 2e-5
        size = case.v.abs().max().item()
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=near * size, msg=f"seed {seed}")
        torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=1e-4, msg=f"seed {seed}")
    assert ran >= 6


@pytest.mark.parametrize("width", [16, 40, 80, 128])
@pytest.mark.parametrize("scale", [None, -0.3])
def test_head_sizes_grouped_heads_and_scales(width, scale):
    q, k, v = tensors(width, 130, 130, heads=2, key_heads=1, width=width)
    mask = torch.ones(130, 130, dtype=torch.bool).tril()[None, None]
    plan = BlockPlan.from_rule(Rule.causal(130), block_q=64, block_k=64)
    out, lse = block_sparse_attention(q, k, v, plan, scale=scale, backend="triton_int8")
    wanted, wanted_lse = exact(q, k, v, mask, width**-0.5 if scale is None else scale)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=2e-5)


def test_keys_with_much_in_common_lose_little():
    """The common part would take the eight bits; without it the error is that of plain keys."""
    q, k, v = tensors(5, 256, 256, width=64)
    plan, mask = BlockPlan.dense(256, 256), torch.ones(1, 1, 256, 256, dtype=torch.bool)
    errors = []
    for common in (0.0, 30.0):
        shifted = k + common * torch.randn(1, 1, 2, 64, generator=torch.Generator().manual_seed(1))
        out, _ = block_sparse_attention(q, shifted, v, plan, backend="triton_int8")
        wanted, _ = attend(*(x.double() for x in (q, shifted, v)), mask, 64**-0.5, None, dtype=torch.float64)
        errors.append(((out - wanted).norm() / wanted.norm()).item())
    assert errors[0] < 0.01 and errors[1] < 1.3 * errors[0], errors


def test_nan_stays_with_the_rows_that_see_it():
    q, k, v = tensors(6, 128, 128, width=32)
    keep = torch.tensor([[True, False], [True, True]])[None, None]
    plan = BlockPlan.from_dense_blocks(keep, 128, 128)
    q[0, 3], k[0, 100] = torch.nan, torch.inf
    out, lse = block_sparse_attention(q, k, v, plan, backend="triton_int8")
    assert out[0, 3].isnan().all() and out[0, 64:].isnan().all()
    rest = torch.cat([out[0, :3], out[0, 4:64]])
    assert rest.isfinite().all() and lse[0, :, :3].isfinite().all()


def test_gradients_and_biases_are_refused():
    q, k, v = tensors(7, 64, 64, width=16)
    plan = BlockPlan.dense(64, 64)
    with pytest.raises(UnsupportedError, match="no gradient"):
        block_sparse_attention(q.requires_grad_(), k, v, plan, backend="triton_int8")
    where = torch.zeros(64, 1)
    bias = Quadratic(torch.ones(1, 1), where, where)
    assert "no bias" in why_not("triton_int8", q.detach(), k, v, plan, bias=(bias,), needs_grad=False)
