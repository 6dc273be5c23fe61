"""The log-sum-exp merge: union of key sets, gradients to every out and lse, rows that see nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import UsageError
from genkit.kernels.merge import merge


def piece(q, k, v):
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v), scores.logsumexp(-1)


def random_qkv(n, m, heads=2, dim=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = [(2, n, heads, dim), (2, m, heads, dim), (2, m, heads, dim)]
    return [torch.randn(s, dtype=dtype, generator=g) for s in shape]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 18), min_size=0, max_size=4, unique=True), scale=st.sampled_from([1.0, 4.0, 16.0]))
def test_union_of_key_sets_equals_attention_over_all_keys(cuts, scale):
    q, k, v = random_qkv(7, 19)
    q = q * scale
    whole = piece(q, k, v)
    edges = [0, *sorted(cuts), 19]
    out, lse = merge([piece(q, k[:, a:b], v[:, a:b]) for a, b in zip(edges, edges[1:], strict=False)])
    torch.testing.assert_close(out, whole[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(lse, whole[1], rtol=0, atol=1e-12)


def test_gradients_through_the_merge_equal_those_of_whole_attention():
    def run(cut):
        q, k, v = (x.requires_grad_() for x in random_qkv(5, 9))
        pieces = [(k, v)] if cut is None else [(k[:, :cut], v[:, :cut]), (k[:, cut:], v[:, cut:])]
        out, lse = merge([piece(q, *p) for p in pieces])
        (out.sin().sum() + (lse * lse).sum()).backward()
        return q.grad, k.grad, v.grad

    for whole, split in zip(run(None), run(4), strict=True):
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


def test_gradcheck_with_rows_that_one_part_does_not_see():
    g = torch.Generator().manual_seed(3)
    outs = [torch.randn(1, 4, 2, 3, dtype=torch.float64, generator=g, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(1, 2, 4, dtype=torch.float64, generator=g, requires_grad=True) for _ in range(3)]
    hidden = torch.zeros(1, 2, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True

    def run(*tensors):
        out, lse = merge(
            [
                (tensors[0], tensors[3]),
                (tensors[1], tensors[4].masked_fill(hidden, -torch.inf)),
                (tensors[2], tensors[5]),
            ]
        )
        return out, lse

    assert torch.autograd.gradcheck(run, (*outs, *lses))


def test_row_unseen_everywhere_gives_zero_and_minus_infinity_and_no_nan_gradient():
    outs = [torch.full((1, 3, 1, 4), torch.nan, requires_grad=True), torch.ones(1, 3, 1, 4, requires_grad=True)]
    lses = [
        torch.full((1, 1, 3), -torch.inf, requires_grad=True),
        torch.tensor([[[0.0, -torch.inf, 1.0]]], requires_grad=True),
    ]
    out, lse = merge(list(zip(outs, lses, strict=True)))
    assert out[0, 1].abs().max() == 0 and lse[0, 0, 1] == -torch.inf
    torch.testing.assert_close(out[0, 0], torch.ones(1, 4))
    (out.sum() + lse[0, 0, ::2].sum()).backward()
    for grad in (outs[1].grad, *(x.grad for x in lses)):
        assert torch.isfinite(grad).all()
    assert outs[0].grad.abs().max() == 0


def test_one_part_comes_back_unchanged_and_only_lse_or_only_out_can_be_differentiated():
    q, k, v = random_qkv(4, 6)
    out, lse = piece(q, k, v)
    same, same_lse = merge([(out, lse)])
    assert torch.equal(same, out) and torch.allclose(same_lse, lse, rtol=0, atol=1e-15)
    a = lse.clone().requires_grad_()
    merge([(out, a), (out * 2, lse)])[1].sum().backward()
    torch.testing.assert_close(a.grad, torch.full_like(a, 0.5))


@pytest.mark.parametrize("dtype,budget", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_low_precision_keeps_float32_statistics(dtype, budget):
    q, k, v = random_qkv(6, 12)
    whole, whole_lse = piece(q, k, v)
    halves = [piece(q, k[:, s], v[:, s]) for s in (slice(0, 5), slice(5, 12))]
    out, lse = merge([(o.to(dtype), s.float()) for o, s in halves])
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert (out.double() - whole).abs().max() < budget
    torch.testing.assert_close(lse.double(), whole_lse, rtol=0, atol=1e-5)


def test_wrong_parts_are_refused_with_both_shapes():
    out, lse = torch.zeros(1, 4, 2, 3), torch.zeros(1, 2, 4)
    with pytest.raises(UsageError, match="at least one"):
        merge([])
    with pytest.raises(UsageError, match=r"part 1 .*\(1, 5, 2, 3\)"):
        merge([(out, lse), (torch.zeros(1, 5, 2, 3), torch.zeros(1, 2, 5))])
    with pytest.raises(UsageError, match="part 1 is torch.float64"):
        merge([(out, lse), (out.double(), lse)])
