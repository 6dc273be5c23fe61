"""The Triton backend of per-token selection without a GPU: parity in the interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreter import run_checks

from genkit.kernels.inputs import matrix_unit_of
from genkit.kernels.token_select import why_not
from genkit.kernels.token_select.impl.triton.backend import UNITS, tiles_for


def test_kernels_equal_brute_force_in_the_interpreter():
    assert run_checks(Path(__file__).with_name("triton_checks.py")) == 23


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiles_suit_the_matrix_units(dim, dtype, unit):
    rows = {"warps": 16, "fours": 16, "memory": 16, "wavefronts": 32}[unit]
    for name, tile in tiles_for(dim, dtype, unit).items():
        assert tile.queries in (16, 32, 64, 128) and tile.keys in (16, 32, 64, 128)
        own = tile.keys if name == "dkv" else tile.queries
        if dtype != torch.float32 and (unit == "wavefronts" or (unit == "warps" and dim <= 80)):
            # Warps lie below each other: a tile with fewer rows is computed several times.
            assert own >= rows * tile.warps, f"{name}: {own} rows for {tile.warps} warps"


def test_matrix_units_of_targets():
    targets = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "gfx942", "gfx950")
    found = [matrix_unit_of(target) for target in targets]
    assert found == ["warps"] * 3 + ["fours"] + ["memory"] * 3 + ["warps"] + ["wavefronts"] * 2 and set(found) == set(
        UNITS
    )


def test_without_a_device_it_says_why_not():
    q = torch.zeros(1, 4, 1, 16)
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "needs a CUDA or HIP device" in why_not("triton", q, q, q)
