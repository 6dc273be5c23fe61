"""The seam stays short: Python function calls that a patch adds to one attention call. Times are noisy, these are not.

Microseconds are measured by ``python -m benchmarks seam``.
"""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from gate_methods import Full

import genkit


class Told(Full):
    """Gives the values back: the own backend's calls (about ten) are not made, and the method adds one."""

    def attend(self, q, k, v, site, cache):
        return v


def calls_of(run) -> int:
    """Python functions that are called, those of torch and Diffusers too."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("steps", "most"), [(None, 20), ("1000:", 28)])
def test_calls_that_a_patch_adds(steps, most):
    case = tiny.build("wan")
    module, x = case.model.blocks[0].attn1, torch.randn(2, 60, 24)
    schedule = genkit.Schedule(steps=steps)
    with torch.no_grad():
        own = calls_of(lambda: module(x))
        with genkit.patch(case.model, Told(), roles="self", schedule=schedule):
            case.run()
            module(x)
            patched = calls_of(lambda: module(x))
    assert patched - own <= most
