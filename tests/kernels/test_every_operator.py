"""What holds for every attention operator and backend: strides, NaN, mixed devices and dtypes, head sizes."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels import BlockPlan, block_sparse_attention, merge
from genkit.kernels.agent import agent_attention
from genkit.kernels.linear_state import linear_state
from genkit.kernels.token_select import token_select_attention

N, BLOCK = 32, 16
OWN = torch.eye(2, dtype=torch.bool)


def block_sparse(backend):
    def run(q, k, v):
        plan = BlockPlan.from_dense_blocks(OWN, N, N, block_q=BLOCK, block_k=BLOCK)
        return block_sparse_attention(q, k, v, plan, backend=backend)

    return run


def token_select(backend):
    def run(q, k, v):
        selected = OWN.repeat_interleave(BLOCK, 0)[None, None].to(q.device)
        return token_select_attention(q, k, v, selected, BLOCK, backend=backend)

    return run


def linear(backend):
    def run(q, k, v):
        out, state = linear_state(q.square(), k.square(), v, mode="frame", group=BLOCK, backend=backend)
        return out, state.z

    return run


def agents(q, k, v):
    return (agent_attention(q, k, v, torch.ones(2, 3, 2, 8, dtype=k.dtype)),)


def merged(q, k, v):
    return merge([(q, k[..., 0].transpose(1, 2)), (v, k[..., 1].transpose(1, 2))])


OPERATORS = {
    "block_sparse cpu": block_sparse("cpu"),
    "block_sparse reference": block_sparse("reference"),
    "block_sparse flex": block_sparse("flex"),
    "token_select cpu": token_select("cpu"),
    "token_select reference": token_select("reference"),
    "linear_state chunked": linear("chunked"),
    "linear_state reference": linear("reference"),
    "agent": agents,
    "merge": merged,
}
# Agents read every key; the others multiply unseen values by weights of 0.
READ_EVERYTHING = ("agent", "block_sparse flex", "token_select reference", "linear_state reference")
TRAINABLE = [name for name in OPERATORS if name != "block_sparse flex"]


def tensors():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, N, 2, 8, generator=g) for _ in range(3)]


LAYOUTS = {
    "heads before tokens": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "channels first": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every second channel": lambda x: torch.stack([x, x], -1)[..., 1],
    "some of the heads": lambda x: torch.cat([x, x], 2)[:, :, 2:],
    "one batch entry for all": lambda x: x[:1].expand(2, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TRAINABLE)
def test_strides_do_not_matter(name, layout):
    results = []
    for turn in (lambda x: x.clone(memory_format=torch.contiguous_format), lambda x: x):
        leaves = [turn(LAYOUTS[layout](x)).detach().requires_grad_() for x in tensors()]
        found = OPERATORS[name](*leaves)
        # The gradient of a sum arrives broadcast, with stride 0.
        results.append([*found, *torch.autograd.grad(sum(x.sum() for x in found), leaves)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_nan_reaches_the_rows_that_see_it_and_no_others(name):
    q, k, v = tensors()
    q[0, 3] = torch.nan
    out = OPERATORS[name](q, k, v)[0]
    assert out.shape == (2, N, 2, 8)
    assert bool(out[0, 3].isnan().all()) and bool(out[1].isfinite().all()) and bool(out[0, BLOCK:].isfinite().all())
    q, k, v = tensors()
    v[0, BLOCK + 1] = torch.nan
    out = OPERATORS[name](q, k, v)[0]
    assert bool(out[0, BLOCK + 1].isnan().any()) and bool(out[1].isfinite().all())
    if name not in READ_EVERYTHING:
        assert bool(out[0, :BLOCK].isfinite().all())


@pytest.mark.parametrize("name", TRAINABLE)
def test_nan_comes_back_in_the_gradients(name):
    leaves = tensors()
    leaves[0][0, 3] = torch.nan
    leaves = [x.requires_grad_() for x in leaves]
    found = OPERATORS[name](*leaves)[0]
    grads = torch.autograd.grad(found.square().sum(), leaves)
    assert any(bool(x[0].isnan().any()) for x in grads) and all(bool(x[1].isfinite().all()) for x in grads)


@pytest.mark.parametrize("name", OPERATORS)
def test_mixed_devices_are_refused(name):
    q, k, v = tensors()
    with pytest.raises(UsageError, match="cpu.*meta|meta.*cpu"):
        OPERATORS[name](q, k.to("meta"), v.to("meta"))


@pytest.mark.parametrize("name", [name for name in OPERATORS if not name.startswith("linear")])
def test_mixed_dtypes_are_refused(name):
    q, k, v = tensors()
    with pytest.raises(UsageError, match="float16.*float32|float32.*float16"):
        OPERATORS[name](q, k, v.half())


def test_linear_attention_computes_mixed_dtypes_in_float32_and_returns_that_of_the_values():
    q, k, v = tensors()
    out, z = linear("chunked")(q, k, v.half())
    assert out.dtype == torch.float16 and z.dtype == torch.float32


@pytest.mark.parametrize("operator", [block_sparse, token_select])
def test_a_head_size_that_a_named_backend_lacks_raises_with_the_limit(operator):
    pytest.importorskip("triton")
    wide = torch.zeros(1, N, 1, 320)
    out = operator("reference")(wide, wide, wide)[0]
    assert out.shape == wide.shape
    with pytest.raises(UnsupportedError, match="320 exceeds 256|CUDA or HIP"):
        operator("triton")(wide, wide, wide)


@pytest.mark.parametrize("operator", [block_sparse, token_select])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_plan_for_another_length_is_refused(operator, backend):
    q, k, v = (torch.cat([x, x], 1) for x in tensors())
    with pytest.raises(UsageError, match="32|selected must be"):
        operator(backend)(q, k, v)
