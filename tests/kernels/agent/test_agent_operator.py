"""Agent attention against the oracles of its card by their number, its composite matrix, and float64 gradients."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UsageError
from genkit.kernels import LowRank
from genkit.kernels.agent import agent_attention


def wave(n, d, offset):
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + offset).reshape(1, n, 1, d)


@pytest.fixture
def example():
    q, k, v = wave(8, 4, 0), wave(8, 4, 1), wave(8, 4, 2)
    return q, k, v, q.reshape(1, 4, 2, 1, 4).mean(2)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_worked_example_gives_its_numbers(example):
    out = agent_attention(*example)
    assert out.sum().item() == pytest.approx(4.385415807418, abs=1e-11)
    row = torch.tensor([0.220095, 0.147016, 0.072469, -0.002802], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, 0], row, rtol=0, atol=1e-6)


def test_the_worked_example_gives_its_numbers_with_sharp_reading_and_shortcut(example):
    out = agent_attention(*example, read_scale=0.5**0.3, shortcut=0.075)
    assert out.sum().item() == pytest.approx(4.372032523324, abs=1e-11)
    row = torch.tensor([0.294362, 0.217674, 0.138811, 0.058561], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, 0], row, rtol=0, atol=1e-6)


def test_composite_weights_sum_to_one_and_have_the_rank_of_the_agents(example):
    q, k, _, agents = example
    weights = agent_attention(q, k[:, :, :, :4], torch.eye(8, dtype=torch.float64)[None, :, None, :4], agents)
    rest = agent_attention(q, k, torch.eye(8, dtype=torch.float64)[None, :, None, 4:], agents)
    matrix = torch.cat([weights, rest], -1)[0, :, 0]
    torch.testing.assert_close(matrix.sum(1), torch.ones(8, dtype=torch.float64))
    assert torch.linalg.matrix_rank(matrix, atol=1e-12) == 4


def test_well_separated_agents_tend_to_dense_attention():
    q = 4 * torch.cat([torch.eye(4), -torch.eye(4)]).double()[None, :, None]
    k, v = wave(8, 4, 1), wave(8, 4, 2)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    errors = [
        (agent_attention(q, k, v, q, scale=0.5, read_scale=s) - dense).abs().max().item() for s in (0.25, 1.0, 2.0)
    ]
    assert errors[0] == pytest.approx(0.0656, abs=1e-3) and errors[1] < 1e-6 and errors[2] < 1e-12


def test_constant_values_one_agent_and_permuted_keys_leave_what_they_must(example):
    q, k, v, agents = example
    constant = agent_attention(q, k, torch.ones_like(v), agents, shortcut=0.075)
    torch.testing.assert_close(constant, torch.full_like(constant, 1.075))
    single = agent_attention(q, k, v, agents[:, :1])
    assert (single - single[:, :1]).abs().max() < 1e-14
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    torch.testing.assert_close(agent_attention(q, k[:, order], v[:, order], agents), agent_attention(*example))


def test_text_keys_beside_the_agents_and_biases_match_explicit_softmax():
    q, k, v, a = random(2, 7, 4, 8), random(2, 9, 2, 8, seed=1), random(2, 9, 2, 8, seed=2), random(2, 3, 4, 8, seed=3)
    ek, ev = random(2, 5, 2, 8, seed=4), random(2, 5, 2, 8, seed=5)
    b1, b2 = random(4, 3, 9, seed=6)[None], random(4, 7, 8, seed=7)[None]
    out = agent_attention(q, k, v, a, gather_bias=b1, read_bias=b2, extra_k=ek, extra_v=ev)
    wide = [x.repeat_interleave(2, 2) for x in (k, v, ek, ev)]
    first = (torch.einsum("bnhd,bmhd->bhnm", a, wide[0]) / 8**0.5 + b1).softmax(-1)
    values = torch.cat([torch.einsum("bhnm,bmhd->bnhd", first, wide[1]), wide[3]], 1)
    second = (torch.einsum("bnhd,bmhd->bhnm", q, torch.cat([a, wide[2]], 1)) / 8**0.5 + b2).softmax(-1)
    torch.testing.assert_close(out, torch.einsum("bhnm,bmhd->bnhd", second, values))


def _factors(rank=3):
    """Biases of 3 agents x 9 keys and 7 queries x 3 agents, per head and shared, as factors and written out."""
    f1, g1 = random(1, 3, 4, rank, seed=8), random(9, rank, seed=9)
    f2, g2 = random(2, 7, 1, rank, seed=10), random(1, 3, 4, rank, seed=11)
    dense = [torch.einsum("bnhr,bmhr->bhnm", f.expand(-1, -1, 4, -1), g.expand(len(f), -1, 4, -1))
             for f, g in ((f1, g1[None, :, None]), (f2, g2))]  # fmt: skip
    return (f1, g1, f2, g2), dense


@pytest.mark.parametrize("extra", [False, True])
def test_biases_as_factors_equal_biases_written_out(extra):
    """Also together with written ones, with grouped key heads and keys beside the agents; and their gradients."""
    q, k, v, a = random(2, 7, 4, 8), random(2, 9, 2, 8, seed=1), random(2, 9, 2, 8, seed=2), random(2, 3, 4, 8, seed=3)
    more = {"extra_k": random(2, 5, 2, 8, seed=4), "extra_v": random(2, 5, 2, 8, seed=5)} if extra else {}
    b2 = random(1, 4, 7, 8 if extra else 3, seed=7)
    tables, dense = _factors()
    given = [x.clone().requires_grad_() for x in (q, k, v, a, *tables)]
    f1, g1, f2, g2 = given[4:]
    out = agent_attention(*given[:4], read_scale=0.6, read_bias=b2, gather_factors=LowRank(f1, g1),
                          read_factors=LowRank(f2, g2), **more)  # fmt: skip
    same = [x.clone().requires_grad_() for x in (q, k, v, a, *tables)]
    f1, g1, f2, g2 = same[4:]
    bias1 = torch.einsum("bnhr,mr->bhnm", f1, g1)
    bias2 = torch.einsum("bnr,bmhr->bhnm", f2[:, :, 0], g2.expand(2, -1, -1, -1))
    torch.testing.assert_close(bias1, dense[0])
    torch.testing.assert_close(bias2, dense[1])
    whole = torch.nn.functional.pad(bias2, (0, 5 if extra else 0)) + b2
    right = agent_attention(*same[:4], read_scale=0.6, gather_bias=bias1, read_bias=whole, **more)
    torch.testing.assert_close(out, right)
    slope = random(*out.shape, seed=12)
    for got, wanted in zip(torch.autograd.grad(out, given, slope), torch.autograd.grad(right, same, slope),
                           strict=True):  # fmt: skip
        torch.testing.assert_close(got, wanted)


def test_gradients_reach_every_input_through_pooled_agents():
    q, k, v = (random(1, 6, 2, 3, seed=s).requires_grad_() for s in range(3))

    def pooled(q, k, v):
        return agent_attention(q, k, v, q.unflatten(1, (3, 2)).mean(2), read_scale=0.9, shortcut=0.1)

    assert torch.autograd.gradcheck(pooled, (q, k, v))


def test_wrong_shapes_are_refused():
    q, k, a = random(1, 6, 2, 4), random(1, 5, 2, 4), random(1, 3, 2, 4)
    for call in (
        lambda: agent_attention(q, k, k[:, :4], a),
        lambda: agent_attention(q, k, k, a[:, :, :1]),
        lambda: agent_attention(q, k, k, a, shortcut=0.1),
        lambda: agent_attention(q, k, k, a, extra_k=k),
        lambda: agent_attention(q[0], k, k, a),
        lambda: agent_attention(q, k, k, a[:, :0]),
        lambda: agent_attention(q, k, k, a, gather_factors=LowRank(random(3, 2), random(6, 2))),
        lambda: agent_attention(q, k, k, a, read_factors=LowRank(random(6, 2), random(2, 2))),
        lambda: agent_attention(q, k, k, a, scale=0.0, gather_factors=LowRank(random(3, 2), random(5, 2))),
    ):
        with pytest.raises(UsageError):
            call()
