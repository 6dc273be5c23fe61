"""Block means: the Triton form in the interpreter (own process), refusals, and the choice of backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreter import run_checks

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels.scores import pool_backends, pool_blocks, pool_why_not


def test_the_kernel_equals_sums_token_by_token_in_the_interpreter():
    assert run_checks(Path(__file__).with_name("triton_checks.py")) == 19


def test_refusals_say_why():
    x = torch.zeros(1, 8, 1, 16)
    assert pool_backends() == ("triton", "torch") and pool_why_not("torch", x.to("meta")) is None
    if not torch.cuda.is_available():
        assert "needs a CUDA or HIP device" in pool_why_not("triton", x)
    assert "float64" in pool_why_not("triton", x.double())
    assert "exceeds 256" in pool_why_not("triton", torch.zeros(1, 8, 1, 257))
    assert "65535 programs" in pool_why_not("triton", torch.zeros(1, 1, 1, 16).expand(1, 1, 1 << 16, 16))
    with pytest.raises(UnsupportedError, match="float64"):
        pool_blocks(x.double(), 4, backend="triton")
    with pytest.raises(UsageError, match="allowed: auto, triton, torch"):
        pool_blocks(x, 4, backend="cuda")
    with pytest.raises(UsageError, match="block >= 1"):
        pool_blocks(x, 0)
    with pytest.raises(UsageError, match="2 blocks, got shape"):
        pool_blocks(x, 4, torch.ones(3))


def test_means_carry_no_gradient():
    x = torch.ones(1, 8, 1, 16, requires_grad=True)
    assert not pool_blocks(x, 4).requires_grad
