"""The Triton form of block means in Triton's interpreter. Run by test_pool.py in its own process."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UnsupportedError
from genkit.kernels.scores import pool_blocks, pool_why_not, pooled_scores


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def means(x, block, valid=None):
    """Token by token in float64, sharing nothing with either form."""
    found = []
    for number, start in enumerate(range(0, x.shape[1], block)):
        stop = min(start + block, x.shape[1], *([] if valid is None else [start + int(valid[number])]))
        empty = x.new_zeros(x.shape[0], *x.shape[2:]).double()
        found.append(sum((x[:, token].double() for token in range(start, stop)), empty) / max(1, stop - start))
    return torch.stack(found, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "n,block,dim", [(101, 64, 64), (129, 128, 128), (75, 16, 40), (7, 64, 16), (9, 1, 20), (130, 130, 160)]
)
def test_means_equal_sums_token_by_token(n, block, dim, dtype, nan_memory):
    x = noise(2, n, 3, dim, dtype=dtype, seed=n) * 4
    found, torch_form = (pool_blocks(x, block, backend=name) for name in ("triton", "torch"))
    assert found.dtype == torch.float32 and found.shape == torch_form.shape == (2, -(-n // block), 3, dim)
    exact = means(x, block)
    assert (found - exact).abs().max() < 4e-6 and (torch_form - exact).abs().max() < 4e-6


def test_only_the_valid_tokens_are_read_and_strides_do_not_matter(nan_memory):
    x = noise(1, 140, 2, 32)
    valid = torch.tensor([32, 5, 0, 31, 12])
    x[:, 37:96] = torch.nan
    wanted = means(x, 32, valid)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    channels = torch.stack([x, x], -1)[..., 1]
    for strange in (x, turned, channels, x.expand(1, -1, -1, -1)):
        for name in ("triton", "torch"):
            found = pool_blocks(strange, 32, valid, backend=name)
            assert found.isfinite().all() and found[0, 2].abs().max() == 0
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def test_nan_stays_in_its_block_and_channel():
    x = noise(1, 96, 2, 16)
    x[0, 40, 1, 3] = torch.nan
    hit = pool_blocks(x, 32, backend="triton").isnan()
    assert hit.nonzero().tolist() == [[0, 1, 1, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_with_grouped_heads_and_ragged_tails(dtype):
    q, k = noise(2, 133, 4, 64, dtype=dtype), noise(2, 90, 2, 64, dtype=dtype, seed=1)
    valid = torch.tensor([32, 0, 26])
    pair = [pooled_scores(q, k, 64, 32, k_valid=valid, centre_k=True, backend=name) for name in ("triton", "torch")]
    assert pair[0].shape == (2, 4, 3, 3) and (pair[0][..., 1] == 0).all()
    torch.testing.assert_close(*pair, rtol=0, atol=1e-6)


def test_addresses_beyond_two_to_the_31():
    # Two batch entries further apart than 32-bit offsets reach; only the pages that are touched exist.
    memory = torch.empty((1 << 31) + 4096, dtype=torch.float16)
    far = memory.as_strided((2, 40, 1, 16), (1 << 31, 16, 16, 1))
    near = noise(2, 40, 1, 16, dtype=torch.float16)
    far.copy_(near)
    assert torch.equal(pool_blocks(far, 16, backend="triton"), pool_blocks(near, 16, backend="triton"))


def test_operator_registration_and_compilation_as_one_graph():
    x, valid = noise(1, 50, 2, 16), torch.tensor([16, 3, 16, 2])
    for given, name in ((None, "torch"), (valid, "triton")):
        outcome = torch.library.opcheck(torch.ops.genkit.pool_blocks.default, (x, 16, given, name))
        assert set(outcome.values()) == {"SUCCESS"}

    def function(x):
        return pool_blocks(x * 2, 16, valid, backend="triton") + 1

    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x.clone().requires_grad_())
    assert torch.equal(found, function(x)) and not found.requires_grad


def test_what_the_interpreter_gets_wrong_is_refused():
    x = torch.zeros(1, 8, 1, 16)
    assert pool_why_not("triton", x) is None and "bfloat16 wrongly" in pool_why_not("triton", x.bfloat16())
    with pytest.raises(UnsupportedError, match="float64"):
        pool_blocks(x.double(), 4, backend="triton")
