"""Memory that a kernel allocates and forgets to write must show: uninitialised float tensors are filled with NaN.
And on a processor that runs native kernels, what the CPU backend does elsewhere is tested too."""

from __future__ import annotations

import pytest
import torch


def _filled(make):
    def allocate(*args, **kwargs):
        made = make(*args, **kwargs)
        if isinstance(made, torch.Tensor) and made.is_floating_point() and made.device.type != "meta":
            made.fill_(float("nan"))
        return made

    return allocate


@pytest.fixture
def nan_memory(monkeypatch):
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, _filled(getattr(owner, name)))


@pytest.fixture
def torch_kernel(monkeypatch):
    """Block-sparse attention on the CPU in torch's kernel, as on a machine without native kernels."""
    from genkit.kernels.native.attention import passes as native

    monkeypatch.setattr(native, "why_not", lambda *given: "for this test")
