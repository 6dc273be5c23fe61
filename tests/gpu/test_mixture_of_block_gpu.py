"""The choice of blocks repeats bit for bit on a device: a recomputed pass must choose what the first one chose."""

from __future__ import annotations

import pytest
import torch

from genkit.attention.mixture_of_block import MixtureOfBlock, Partition


@pytest.mark.parametrize("method", [MixtureOfBlock(), MixtureOfBlock(select="threshold", scope="head")])
def test_choices_repeat(method, device):
    grid = (8, 24, 32)
    part = Partition(grid, method.block_box(grid, "box")).to(device)
    g = torch.Generator(device).manual_seed(1)
    q, k = (torch.randn(1, 8 * 24 * 32, 4, 64, device=device, generator=g).bfloat16() for _ in range(2))
    first = method.select_blocks(q, k, part)
    assert all(torch.equal(method.select_blocks(q, k, part), first) for _ in range(10))
