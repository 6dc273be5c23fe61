"""Calls of one attention site without a model, and an explicit attention to compare with."""

from __future__ import annotations

import gc

import pytest
import torch

from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.control import Rows
from genkit.control.method import ControlMethod, ControlState
from genkit.layout import TokenLayout
from genkit.patching import interception

torch.set_num_threads(1)


def explicit(q, k, v, mask=None, factor=None, bias=None):
    """Attention written out, (B, N, H, D) in and out: scores times ``factor`` plus ``bias``, hidden where not ``mask``.
    All broadcast to (B, H, N, M). Gives the output and the weights."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    if factor is not None:
        scores = scores * factor
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v), weights


class OneCall:
    """An attention call of three rows at one site, and rules applied to it."""

    def __init__(self, role="self", grid=(1, 2, 4), text=5, heads=2, width=4, roles=("source", "target", "layout")):
        generator = torch.Generator().manual_seed(7)
        joint = role == "joint"
        layout = TokenLayout.of_grid(*grid, text=text if joint else 0, text_first=True)
        keys = TokenLayout.sequence(text, "text") if role == "cross" else layout
        self.site = Site("block.0.attn", 0, 1, role, heads, layout, keys)
        self.rows = Rows.of(*roles, guided=False)
        shape = lambda tokens: (len(roles), tokens, heads, width)  # noqa: E731
        kind = {"dtype": torch.float64, "generator": generator}
        self.q = torch.randn(shape(layout.length), **kind)
        self.k, self.v = (torch.randn(shape(keys.length), **kind) for _ in range(2))
        self.text = keys.text_span
        self.picture = slice(*layout.grid_span)

    def run(self, *rules, step=0, steps=10, **changes):
        """(output or None, maps) of one call under rules; ``changes``: other q, k, v."""
        self.state = ControlState(self.rows, step, steps)
        self.method = ControlMethod(rules, self.state)
        self.method.observe({}, PatchCache())
        tensors = {"q": self.q, "k": self.k, "v": self.v} | changes
        out = self.method.attend(*tensors.values(), self.site, PatchCache())
        return out, self.state.maps


@pytest.fixture
def one_call():
    """A function that makes a :class:`OneCall`."""
    return OneCall


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After every test no pass-through is in place."""
    yield
    if interception.INTERCEPTION.installed:
        gc.collect()
    assert not interception.INTERCEPTION.installed, "a test left a patch behind"
