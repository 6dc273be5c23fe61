"""Per-token selection on a real device against the reference."""

from __future__ import annotations

import pytest
import torch

from genkit.kernels.token_select import token_select_attention


@pytest.mark.parametrize("dtype,budget", [(torch.float32, 3e-6), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("dim", [40, 64, 96, 128, 256])
@pytest.mark.parametrize("limit", [1 << 16, 1 << 28])
def test_outputs_and_gradients(dtype, budget, dim, limit, device, monkeypatch):
    from genkit.kernels.token_select.impl.triton import backend as triton

    monkeypatch.setattr(triton, "BUFFER_BYTES", limit)
    g = torch.Generator(device).manual_seed(dim)
    q = torch.randn(2, 300, 4, dim, device=device, generator=g)
    k, v = (torch.randn(2, 410, 2, dim, device=device, generator=g) for _ in range(2))
    starts = [0, 100, 101, 250, 410]
    selected = torch.rand(2, 4, 300, 4, device=device, generator=g) < 0.4
    selected[..., 0] |= ~selected.any(-1)
    results = []
    for backend, wide in (("triton", dtype), ("reference", torch.float64)):
        leaves = [x.to(dtype).to(wide).requires_grad_() for x in (q, k, v)]
        out, lse = token_select_attention(*leaves, selected, starts, backend=backend)
        loss = (out.double() * torch.arange(dim, device=device)).sum() / dim + lse.double().sin().sum()
        results.append([out, lse, *torch.autograd.grad(loss, leaves)])
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), *results, strict=True):
        error = ((x.double() - y).abs().max() / y.abs().max()).item()
        assert error < budget, f"{name}: {error:.1e}"
