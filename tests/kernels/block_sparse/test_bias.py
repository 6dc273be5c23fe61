"""Additive biases against a dense bias matrix: values, gradients of q, k, v and of the bias tables, every backend."""

from __future__ import annotations

import pytest
import torch
from oracle import attend

from genkit.errors import UsageError
from genkit.kernels import BlockPlan, LowRank, Quadratic, Rule, Table, TokenOrder, block_sparse_attention

N_Q, N_K, HEADS, DIM = 37, 45, 4, 8


def inputs(seed=0, dtype=torch.float64):
    noise = torch.Generator().manual_seed(seed)
    shapes = [(2, N_Q, HEADS, DIM), (2, N_K, 2, DIM), (2, N_K, 2, DIM)]
    return [torch.randn(shape, generator=noise, dtype=dtype).requires_grad_() for shape in shapes]


def low_rank(per_head, rank=3):
    noise = torch.Generator().manual_seed(1)
    lead = (2, HEADS) if per_head else (1, 1)
    f, g = (
        torch.randn(lead[0], n, lead[1], rank, generator=noise, dtype=torch.float64).requires_grad_()
        for n in (N_Q, N_K)
    )
    return LowRank(f, g), [f, g], torch.einsum("bihr,bjhr->bhij", f, g)


def quadratic(per_head):
    noise = torch.Generator().manual_seed(2)
    q_pos, k_pos = (torch.randn(n, 2, generator=noise, dtype=torch.float64) for n in (N_Q, N_K))
    weight = torch.rand(HEADS if per_head else 1, 2, generator=noise, dtype=torch.float64).requires_grad_()
    q_gain, k_gain = torch.ones(N_Q, dtype=torch.float64), torch.ones(N_K, dtype=torch.float64)
    k_gain[-5:] = 0
    hinge = torch.tensor([0.0, 0.3], dtype=torch.float64)
    apart = ((q_pos[:, None] - k_pos[None]).abs() - hinge).clamp(min=0) ** 2
    matrix = -torch.einsum("ha,ija->hij", weight, apart) * (q_gain[:, None] * k_gain)
    return Quadratic(q_pos, k_pos, weight, hinge, q_gain, k_gain), [weight], matrix[None]


def table(per_head):
    noise = torch.Generator().manual_seed(3)
    q_pos, k_pos = (torch.randint(0, 6, (n, 2), generator=noise) for n in (N_Q, N_K))
    values = tuple(
        torch.randn(HEADS if per_head else 1, size, generator=noise, dtype=torch.float64).requires_grad_()
        for size in (11, 5)
    )
    matrix = 0
    for axis, reach in enumerate((5, 2)):
        apart = q_pos[:, axis][:, None] - k_pos[:, axis][None]
        matrix = matrix + torch.where(apart.abs() <= reach, values[axis][:, apart.clamp(-reach, reach) + reach], 0.0)
    return Table(values, q_pos, k_pos), list(values), matrix[None]


def _uneven(b, h, i, j):
    """A mask without a closed form; query 7 of head 1 sees nothing."""
    return ((i * 7 + j * 13 + h) % 5 < 2) & ~((h == 1) & (i == 7))


def _bits():
    head, query, key = torch.arange(HEADS)[:, None, None], torch.arange(N_Q)[:, None], torch.arange(N_K)
    return _uneven(0, head, query, key)[None]


def plans():
    noise = torch.Generator().manual_seed(4)
    keep = torch.rand(2, HEADS, 3, 6, generator=noise) < 0.5
    keep[..., 1] = True
    where = torch.arange(N_K)[:, None]
    low = (torch.arange(N_Q)[:, None] - 9).clamp(min=0)
    rule = Rule(low, low + 14, where, torch.zeros(N_Q), torch.zeros(N_K), torch.full((1, 1), 2))
    window = (where.T >= low) & (where.T < low + 14)
    order = TokenOrder.from_permutation(torch.randperm(N_Q, generator=noise), 16)
    tokens = keep.repeat_interleave(16, 2)[..., :N_Q, :].repeat_interleave(8, 3)[..., :N_K]
    return {
        "random": (BlockPlan.from_dense_blocks(keep, N_Q, N_K, block_q=16, block_k=8), tokens),
        "window": (BlockPlan.from_rule(rule, block_q=16, block_k=8), window),
        "bits": (BlockPlan.from_mask_mod(_uneven, N_Q, N_K, heads=HEADS, block_q=16, block_k=8, check=False), _bits()),
        "ordered": (BlockPlan.from_rule(rule, order=order, key_order=None, block_k=8), window),
    }


@pytest.mark.parametrize("plan_name", ["random", "window", "bits", "ordered"])
@pytest.mark.parametrize("make", [low_rank, quadratic, table])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_bias_equals_dense_bias_with_all_gradients(plan_name, make, per_head, backend, nan_memory):
    plan, mask = plans()[plan_name]
    bias, leaves, matrix = make(per_head)
    tensors = inputs()
    exact = attend(*tensors, mask, 0.3, matrix)
    found = block_sparse_attention(*tensors, plan, scale=0.3, backend=backend, bias=bias)
    incoming = [torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape) for x in exact]
    wanted = torch.autograd.grad(exact, [*tensors, *leaves], incoming, retain_graph=True)
    given = torch.autograd.grad(found, [*tensors, *leaves], incoming)
    for x, y in zip([*found, *given], [*exact, *wanted], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [low_rank, quadratic, table])
def test_flex_computes_the_same_bias(make):
    plan, mask = plans()["random"]
    bias, _, matrix = make(True)
    with torch.no_grad():
        tensors = [x.float() for x in inputs()]
        out, lse = block_sparse_attention(*tensors, plan, scale=0.3, backend="flex", bias=bias)
        exact = attend(*tensors, mask, 0.3, matrix)
    torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), exact[1], rtol=0, atol=2e-6)


def test_several_terms_add_up_in_float32_and_a_constant_bias_changes_only_lse():
    plan, mask = plans()["window"]
    terms = [low_rank(True)[0], quadratic(False)[0], table(True)[0]]
    matrix = sum(make(flag)[2] for make, flag in ((low_rank, True), (quadratic, False), (table, True)))
    with torch.no_grad():
        tensors = [x.float() for x in inputs()]
        out, lse = block_sparse_attention(*tensors, plan, scale=0.3, bias=terms)
        exact = attend(*tensors, mask, 0.3, matrix)
        torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=5e-6)
        plain = block_sparse_attention(*tensors, plan)
        shifted = block_sparse_attention(*tensors, plan, bias=LowRank(torch.full((N_Q, 1), 2.0), torch.ones(N_K, 1)))
    torch.testing.assert_close(shifted[0], plain[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted[1], plain[1] + 2, rtol=0, atol=2e-6)


def wave(n, d, offset):
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + offset).view(1, n, 1, d)


def test_soft_window_numbers_of_the_low_rank_bias_card():
    q, k, v = wave(8, 4, 0), wave(6, 4, 1), wave(6, 4, 2)
    video, audio = 0.25 * torch.arange(8.0)[:, None], 0.4 * torch.arange(6.0)[:, None]
    bias = Quadratic(video.double(), audio.double(), torch.tensor([2.0], dtype=torch.float64))
    out, lse = block_sparse_attention(q, k, v, BlockPlan.dense(8, 6), scale=0.5, bias=bias)
    assert out.sum().item() == pytest.approx(4.884326511211, abs=1e-6)
    assert out[0, 0, 0].tolist() == pytest.approx([0.722285, 0.657169, 0.585486, 0.507954], abs=2e-6)
    assert lse[0, 0, 0].item() == pytest.approx(1.006379476388, abs=1e-6)


def test_key_weights_equal_repeated_keys():
    q, k, v = wave(8, 4, 0), wave(8, 4, 1), wave(8, 4, 2)
    times = torch.tensor([1, 1, 2, 1, 3, 1, 1, 1])
    bias = LowRank(torch.ones(8, 1, dtype=torch.float64), times.double().log()[:, None])
    out, _ = block_sparse_attention(q, k, v, BlockPlan.dense(8, 8), scale=0.5, bias=bias)
    assert out.sum().item() == pytest.approx(0.436259751418, abs=1e-10)
    more = [x.repeat_interleave(times, 1) for x in (k, v)]
    again, _ = block_sparse_attention(q, *more, BlockPlan.dense(8, 11), scale=0.5)
    torch.testing.assert_close(out, again)


@pytest.mark.parametrize(
    "bias, words",
    [
        (LowRank(torch.zeros(3, 1), torch.zeros(N_K, 1)), "f must be"),
        (LowRank(torch.zeros(N_Q, 1), torch.zeros(3, 1)), "g must be"),
        (Quadratic(torch.zeros(N_Q, 1), torch.zeros(2, 1), torch.ones(1)), "coordinates are for"),
        (Quadratic(torch.zeros(N_Q, 1), torch.zeros(N_K, 1), torch.ones(3, 1)), "weight has 3 heads"),
        ("steep", "got str"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(bias, words):
    q, k, v = (x.float() for x in inputs())
    with pytest.raises(UsageError, match=words):
        block_sparse_attention(q, k, v, BlockPlan.dense(N_Q, N_K), bias=bias)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LowRank(torch.zeros(3, 1), torch.zeros(3, 2)), "same rank"),
        (lambda: LowRank(torch.zeros(3), torch.zeros(3)), "must be"),
        (lambda: Quadratic(torch.zeros(3, 2), torch.zeros(3, 1), torch.ones(2)), "must share A"),
        (lambda: Quadratic(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(1), q_gain=torch.ones(4)), "q_gain"),
        (lambda: Table((torch.zeros(4),), torch.zeros(3, 1), torch.zeros(3, 1)), "2 \\* reach"),
        (lambda: Table((torch.zeros(5),), torch.zeros(3, 2), torch.zeros(3, 1)), "tables need"),
    ],
)
def test_a_malformed_bias_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()
