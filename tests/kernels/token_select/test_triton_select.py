"""The Triton backend of per-token selection without a GPU: parity in the interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreter import run_checks

from genkit.kernels.token_select import why_not
from genkit.kernels.token_select.impl.triton.backend import tiles_for


def test_kernels_equal_brute_force_in_the_interpreter():
    assert run_checks(Path(__file__).with_name("triton_checks.py")) == 15


@pytest.mark.parametrize("dim", [16, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiles_suit_the_matrix_units(dim, dtype):
    for tile in (*tiles_for(dim, dtype).values(), *tiles_for(dim, dtype, fours=True).values()):
        assert tile.queries in (16, 32, 64, 128) and tile.keys in (16, 32, 64, 128)


def test_without_a_device_it_says_why_not():
    q = torch.zeros(1, 4, 1, 16)
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "needs a CUDA or HIP device" in why_not("triton", q, q, q)
