"""The Triton backend on a real device: the same generated problems as on the CPU, plus what only a device shows."""

from __future__ import annotations

import pytest
import torch
from cases import make
from oracle import gradients, magnitudes
from test_parity import build
from tolerance import assert_close

from genkit.kernels import BlockPlan, LowRank, Quadratic, Rule, TokenOrder, block_sparse_attention, why_not
from genkit.kernels.block_sparse.impl.triton import tile_sizes as block_sizes


def check(seed: int, device: torch.device) -> None:
    case = make(seed)
    plan = build(case).to(device)
    noise = torch.Generator().manual_seed(seed)
    d_out = torch.randn(case.q.shape, generator=noise).to(case.q.dtype)
    d_lse = torch.randn(case.q.shape[0], case.q.shape[2], case.q.shape[1], generator=noise)
    exact, eager = (gradients(case, dtype, d_out, d_lse) for dtype in (torch.float64, case.q.dtype))
    terms = magnitudes(case, d_out, d_lse)
    inputs = [x.detach().to(device).requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = block_sparse_attention(*inputs, plan, scale=case.scale, backend="triton")
    found = [out, lse, *torch.autograd.grad([out, lse], inputs, [d_out.to(device), d_lse.to(device)])]
    for name, *row in zip(("out", "lse", "dq", "dk", "dv"), found, exact, eager, terms, strict=True):
        assert_close(row[0].cpu(), *row[1:3], f"seed {seed} ({case.q.dtype}) {name}", row[3])


@pytest.mark.parametrize("start", range(5000, 5300, 30))
def test_generated_problems_equal_brute_force(start, device):
    ran = 0
    for seed in range(start, start + 30):
        if make(seed).q.dtype != torch.float64:
            check(seed, device)
            ran += 1
    assert ran


def random(device, *shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dim", [40, 64, 80, 96, 128, 160, 256])
@pytest.mark.parametrize("blocks", [(128, 128), (64, 64), (256, 64)])
def test_every_tile_of_this_device_against_the_reference(dtype, dim, blocks, device):
    n = 777
    keep = torch.rand(1, 3, -(-n // blocks[0]), -(-n // blocks[1]), generator=torch.Generator().manual_seed(dim)) < 0.5
    keep[..., 0] = True
    plan = BlockPlan.from_dense_blocks(keep.to(device), n, n, block_q=blocks[0], block_k=blocks[1])
    inputs = [random(device, 1, n, 3, dim, dtype=dtype, seed=s) for s in range(3)]
    grad = random(device, 1, n, 3, dim, dtype=dtype, seed=3)
    results = {}
    for name, wide in (("triton", dtype), ("reference", torch.float64)):
        leaves = [x.to(wide).requires_grad_() for x in inputs]
        out, lse = block_sparse_attention(*leaves, plan, backend=name)
        results[name] = [out, lse, *torch.autograd.grad(out, leaves, grad.to(wide))]
    budget = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6}[dtype]
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), *results.values(), strict=True):
        error = ((x.double() - y).abs().max() / y.abs().max()).item()
        assert error < budget, f"{name}: {error:.2e}"


@pytest.mark.parametrize("backend", ["flex", "flex_tma", "flex_flash"])
@pytest.mark.parametrize("ragged", [False, True])
def test_flex_and_its_variants_use_the_lists(backend, ragged, device):
    """A plan that keeps one block in eight: a kernel that skips the lists gives another result."""
    n = 2000 if ragged else 2048
    keep = torch.zeros(1, 1, 8, 16, dtype=torch.bool)
    keep[..., [0, 7]] = True
    plan = BlockPlan.from_dense_blocks(keep.to(device), n, n, block_q=256, block_k=128)
    inputs = [random(device, 1, n, 4, 64, seed=s).requires_grad_() for s in range(3)]
    if reason := why_not(backend, *inputs, plan):
        pytest.skip(reason)
    grad = random(device, 1, n, 4, 64, seed=3)
    out, lse = block_sparse_attention(*inputs, plan, backend=backend)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted, wanted_lse = block_sparse_attention(*wide, plan, backend="reference")
    found = [out, lse, *torch.autograd.grad(out, inputs, grad)]
    exact = [wanted, wanted_lse, *torch.autograd.grad(wanted, wide, grad.double())]
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), found, exact, strict=True):
        error = ((x.double() - y).abs().max() / y.abs().max()).item()
        assert error < 1.6e-2, f"{name}: {error:.2e}"


def test_float32_is_not_rounded_to_tf32(device):
    plan = BlockPlan.dense(256, 256)
    q, k, v = (random(device, 1, 256, 1, 64, dtype=torch.float32, seed=s) for s in range(3))
    out, _ = block_sparse_attention(q, k, v, plan, backend="triton")
    exact, _ = block_sparse_attention(q.double(), k.double(), v.double(), plan, backend="reference")
    assert (out - exact).abs().max() < 3e-6


def test_auto_takes_triton_and_repeats_bit_for_bit(device):
    plan = BlockPlan.from_rule(Rule.causal(1000).to(device))
    inputs = [random(device, 1, 1000, 4, 128, seed=s).requires_grad_() for s in range(3)]
    assert why_not("triton", *inputs, plan) is None
    runs = []
    for backend in ("auto", "triton", "triton"):
        out, lse = block_sparse_attention(*inputs, plan, backend=backend)
        runs.append([out, lse, *torch.autograd.grad(out.float().sin().sum(), inputs)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_biases_and_their_gradients(device):
    n, at = 300, torch.rand(300, 2, generator=torch.Generator().manual_seed(1)).to(device) * 5
    factors = [random(device, n, 5, dtype=torch.float32, seed=s) for s in (4, 5)]
    weight = torch.rand(2, 2, generator=torch.Generator().manual_seed(2)).to(device)
    plan = BlockPlan.dense(n, n, device=device)
    for make_bias, leaves in ((LowRank, factors), (lambda w: Quadratic(at, at, w), [weight])):
        results = []
        for backend in ("triton", "reference"):
            inputs = [random(device, 2, n, 2, 64, dtype=torch.float32, seed=s).requires_grad_() for s in range(3)]
            extra = [x.detach().clone().requires_grad_() for x in leaves]
            out, lse = block_sparse_attention(*inputs, plan, backend=backend, bias=make_bias(*extra))
            results.append([out, lse, *torch.autograd.grad(out.sin().sum() + lse.cos().sum(), inputs + extra)])
        for x, y in zip(*results, strict=True):
            assert ((x - y).abs().max() / y.abs().max().clamp(min=1)).item() < 2e-5


def test_long_sequences_address_beyond_32_bits(device):
    n, heads, dim = 300_000, 64, 128  # 2.46e9 elements a tensor
    if torch.cuda.get_device_properties(device).total_memory < 40 << 30:
        pytest.skip("needs 40 GB of device memory")
    q = random(device, 1, n, heads, dim)
    keep = torch.zeros(1, 1, -(-n // 128), -(-n // 128), dtype=torch.bool)
    keep[..., -3:] = True
    plan = BlockPlan.from_dense_blocks(keep, n, n, block_q=128, block_k=128).to(device)
    out, _ = block_sparse_attention(q, q, q, plan, backend="triton")
    tail = int((n // 128 - 2) * 128)
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q[:, -500:, -2:], q[:, tail:, -2:], q[:, tail:, -2:]))
    ).transpose(1, 2)
    assert (out[:, -500:, -2:].float() - want.float()).abs().max() < 3e-2


def test_compiles_as_one_graph_with_gradients(device):
    plan = BlockPlan.from_rule(Rule.causal(512).to(device))

    def function(q, k, v):
        return block_sparse_attention(q * 1.5, k, v, plan, backend="triton")[0].sin()

    inputs = [random(device, 1, 512, 2, 64, seed=s).requires_grad_() for s in range(3)]
    want = function(*inputs)
    found = torch.compile(function, fullgraph=True)(*inputs)
    assert (found - want).abs().max() < 2e-2
    for x, y in zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True):
        assert (x - y).abs().max() < 5e-2


def test_equals_compiled_flex_attention_on_a_video_grid(device):
    from torch.nn.attention.flex_attention import flex_attention

    grid = (5, 12, 16)
    order = TokenOrder.from_grid(grid, (2, 8, 8))
    place = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    zero = torch.zeros(len(place))
    rule = Rule(place - 3, place + 4, place, zero, zero, torch.tensor([[2]]))
    plan = BlockPlan.from_rule(rule, order=order).to(device).in_order()
    inputs = [random(device, 1, order.padded, 2, 64, seed=s) for s in range(3)]
    out, _ = block_sparse_attention(*inputs, plan, backend="triton")
    turned = [x.transpose(1, 2).contiguous() for x in inputs]
    other = torch.compile(flex_attention)(*turned, block_mask=plan.to_block_mask()).transpose(1, 2)
    real = order.inverse.to(device)
    assert (out[:, real] - other[:, real]).abs().max() < 2e-2


def test_pooled_keys(device):
    levels = torch.tensor([[1, 2, 4, 8], [8, 1, 0, 2], [4, 4, 1, 8]], device=device)[None, None]
    plan = BlockPlan.from_levels(levels, 380, 500, block_q=128, block_k=128)
    q, k, v = (random(device, 1, n, 2, 64, dtype=torch.float32, seed=n) for n in (380, 500, 500))
    pair = [block_sparse_attention(q, k, v, plan, backend=b) for b in ("triton", "reference")]
    for x, y in zip(*pair, strict=True):
        assert (x - y).abs().max() < 1e-5


def test_this_device_has_a_row_in_the_table(device):
    arch = block_sizes.architecture(device)
    assert arch in block_sizes.SHARED_KIB
