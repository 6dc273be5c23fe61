"""The Triton kernels of per-token selection in Triton's interpreter. test_triton_select.py runs it in a process."""

from __future__ import annotations

import pytest
import torch
from test_token_select import brute_force, problem, run_with_gradients

from genkit.kernels.token_select import token_select_attention, why_not
from genkit.kernels.token_select.impl.triton import backend as triton


@pytest.mark.parametrize("d", [16, 40, 80, 96, 112, 160])
@pytest.mark.parametrize("dtype,budget", [(torch.float32, 1e-5), (torch.float16, 3e-3)])
def test_outputs_and_gradients_equal_brute_force(d, dtype, budget, nan_memory):
    size = 4.0 if d == 40 else 1.0
    q, k, v, selected, starts = problem(d, 1, 21, 50, 2, 1, d, (0, 7, 8, 45, 50), 0.5, dtype, size)
    want = run_with_gradients(lambda *x: brute_force(*x, selected, starts), q.double(), k.double(), v.double())
    have = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, backend="triton"), q, k, v)
    for name, got, exact in zip(("out", "lse", "dq", "dk", "dv"), have, want, strict=True):
        error = (got.double() - exact).abs().max() / exact.abs().max().clamp(min=1)
        assert error < budget, f"{name}: {error:.1e}"


@pytest.mark.parametrize("unit", triton.UNITS)
@pytest.mark.parametrize("d,starts", [(64, (0, 150, 161, 300)), (80, (0, 20, 130))])
def test_tiles_of_every_matrix_unit_give_the_same(d, starts, unit, nan_memory, monkeypatch):
    monkeypatch.setattr(triton, "matrix_unit", lambda device: unit)
    q, k, v, selected, starts = problem(d, 1, 140, starts[-1], 2, 1, d, starts, 0.6, torch.float16, 1.0)
    want = run_with_gradients(lambda *x: brute_force(*x, selected, starts), q.double(), k.double(), v.double())
    have = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, backend="triton"), q, k, v)
    for name, got, exact in zip(("out", "lse", "dq", "dk", "dv"), have, want, strict=True):
        error = (got.double() - exact).abs().max() / exact.abs().max().clamp(min=1)
        assert error < 3e-3, f"{name}: {error:.1e}"


def test_groups_of_heads_change_nothing(monkeypatch):
    q, k, v, selected, starts = problem(1, 2, 20, 30, 2, 2, 16, (0, 10, 30))
    whole = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, backend="triton"), q, k, v)
    monkeypatch.setattr(triton, "BUFFER_BYTES", 1024)
    parts = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, backend="triton"), q, k, v)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_rows_and_heads_without_a_block_and_nan():
    q, k, v, selected, starts = problem(2, 1, 20, 30, 2, 1, 16, (0, 10, 30))
    selected[0, 0, 3] = False
    selected[0, 1] = False
    q[0, 7] = torch.nan
    out, lse = token_select_attention(q, k, v, selected, starts, backend="triton", allow_empty=True)
    assert out[0, 3, 0].abs().max() == 0 and lse[0, 0, 3] == -torch.inf and (lse[0, 1] == -torch.inf).all()
    assert out[0, 7, 0].isnan().all() and not out[0, 8:].isnan().any()


def test_bfloat16_is_refused_here():
    q = torch.zeros(1, 4, 1, 16, dtype=torch.bfloat16)
    assert "bfloat16 wrongly" in why_not("triton", q, q, q)
