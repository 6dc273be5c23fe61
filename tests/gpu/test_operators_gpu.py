"""What only a device shows of the operators' errors and of their smaller kernels."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UsageError
from genkit.kernels import BlockPlan, LowRank, Quadratic, Rule, block_sparse_attention
from genkit.kernels.scores import pool_blocks, pooled_scores


def random(device, *shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(seed))


def test_tensors_on_two_devices_are_refused(device):
    q, plan = random(device, 1, 64, 1, 64), BlockPlan.dense(64, 64)
    with pytest.raises(UsageError, match="on one device"):
        block_sparse_attention(q, q.cpu(), q.cpu(), plan)
    with pytest.raises(UsageError, match="use plan.to\\('cuda"):
        block_sparse_attention(q, q, q, plan)


def test_nan_reaches_the_rows_that_see_it_and_ends(device):
    plan = BlockPlan.from_dense_blocks(torch.eye(4, dtype=torch.bool, device=device), 256, 256)
    q, k, v = (random(device, 1, 256, 2, 128, seed=s) for s in range(3))
    q[0, 5], v[0, 130] = torch.nan, torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = block_sparse_attention(*leaves, plan, backend="triton")
    assert out[0, 5].isnan().all() and out[0, 128:192].isnan().all()
    assert out[0, 64:128].isfinite().all() and out[0, 192:].isfinite().all()
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(x[0, 192:].isfinite().all() for x in grads)


def test_strides_do_not_matter(device):
    plan = BlockPlan.from_rule(Rule.causal(300).to(device))
    results = []
    for turn in (
        lambda x: x,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack([x, x], -1)[..., 1],
        lambda x: torch.cat([x, x], 2)[:, :, 2:],
    ):
        leaves = [turn(random(device, 2, 300, 2, 64, seed=s)).detach().requires_grad_() for s in range(3)]
        out, lse = block_sparse_attention(*leaves, plan, backend="triton")
        results.append([out, lse, *torch.autograd.grad(out.float().sum() + lse.sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", ["rank 1", "rank 64", "quadratic"])
def test_biases_under_a_rule_in_bfloat16(kind, dim, device):
    n, plan = 300, BlockPlan.from_rule(Rule.causal(300).to(device), block_q=128, block_k=128)
    at = torch.rand(n, 4, device=device) * 5
    if kind == "quadratic":
        leaves = [torch.rand(4, 4, device=device)]
    else:
        rank = int(kind.split()[1])
        leaves = [random(device, n, rank, dtype=torch.float32, seed=s) / rank**0.5 for s in (4, 5)]
    results = []
    for backend, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
        extra = [x.detach().clone().requires_grad_() for x in leaves]
        bias = Quadratic(at, at, *extra) if kind == "quadratic" else LowRank(*extra)
        inputs = [random(device, 1, n, h, dim, seed=s).to(dtype).requires_grad_() for s, h in enumerate((4, 2, 2))]
        out, lse = block_sparse_attention(*inputs, plan, backend=backend, bias=bias)
        results.append([out, lse, *torch.autograd.grad(out.double().sum() + lse.double().sum(), inputs + extra)])
    for x, y in zip(*results, strict=True):
        assert ((x.double() - y.double()).abs().max() / y.abs().max().clamp(min=1)).item() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n,block,dim", [(1000, 128, 128), (777, 64, 64), (130, 100, 40), (64, 16, 256)])
def test_block_means_equal_the_torch_form(n, block, dim, dtype, device):
    x = random(device, 2, n, 3, dim, dtype=dtype)
    blocks = -(-n // block)
    counts = torch.arange(blocks, device=device) % (block + 1)
    for valid in (None, counts):
        pair = [pool_blocks(x, block, valid, backend=name) for name in ("triton", "torch")]
        torch.testing.assert_close(*pair, rtol=0, atol=2e-6)


def test_scores_take_the_fused_means_by_themselves(device):
    q, k = random(device, 1, 500, 4, 64), random(device, 1, 700, 2, 64, seed=1)
    pair = [pooled_scores(q, k, 64, 128, backend=name) for name in ("auto", "torch")]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    compiled = torch.compile(lambda x: pool_blocks(x * 2, 64), fullgraph=True)
    torch.testing.assert_close(compiled(q), pool_blocks(q * 2, 64), rtol=0, atol=2e-2)
