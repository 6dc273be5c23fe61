"""Everything here needs a CUDA or ROCm device and is skipped, saying so, without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).parents[1] / "kernels"
for folder in (KERNELS, KERNELS / "block_sparse"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def pytest_collection_modifyitems(items):
    """Mark and, without a device, skip."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device, and there is none here"))


@pytest.fixture
def device():
    return torch.device("cuda", torch.cuda.current_device())
