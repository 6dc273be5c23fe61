"""A patched model whose attention chooses its blocks waits for the device no more often than the model alone: forward
and backward, on the meta device, where whoever asks for a value fails. Families that tell the places of tokens by a
tensor's values (ids, masks) are read once a forward before any layer and are not among these."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch

import genkit
from genkit.attention.block_select import BlockSelect
from genkit.attention.block_select.presets import PRESETS
from genkit.attention.block_select.selectors import SELECTORS
from genkit.attention.mixture_of_block import MixtureOfBlock
from genkit.attention.pyramid import Pyramid
from genkit.kernels.block_sparse.impl.triton import backend as block_triton
from genkit.kernels.token_select.impl.triton import backend as token_triton
from genkit.patching import step_tracker

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from syncs import Syncs


def on_meta(x):
    return x.to("meta") if isinstance(x, torch.Tensor) else x


def waits(case: tiny.Tiny) -> Syncs:
    """Those of a forward and a backward pass."""
    with Syncs() as syncs:
        (out, *_) = case.model(**case.args)
        out.float().sum().backward()
    return syncs


METHODS = [
    MixtureOfBlock(),
    MixtureOfBlock(select="threshold", scope="head"),
    *(BlockSelect(block=16, score=score, keep=0.5, untrained=score == "keys") for score in SELECTORS),
    *(BlockSelect(block=16, score=score, top_p=0.8) for score, selector in SELECTORS.items() if selector.masses),
    *(BlockSelect(preset=preset, block=32) for preset in PRESETS),
    Pyramid(block=16),
    Pyramid(block=16, mode="quantile", order="box"),
    BlockSelect(block=16, tail=4),
    BlockSelect(block=16, guard=0.5),
    BlockSelect(block=16, scope="head"),
    BlockSelect(block=16, sink="first_frame"),
]


# every method once on its own tokens, the two kinds also together with text
CASES = [("wan", method) for method in METHODS]
CASES += [("sd3", method) for method in (MixtureOfBlock(), BlockSelect(block=16))]


@pytest.mark.parametrize(("name", "method"), CASES, ids=str)
def test_a_patch_adds_no_wait(name, method, monkeypatch):
    for module in (block_triton, token_triton):
        monkeypatch.setattr(module, "triton_refuses", lambda *given: None)
    # The tracker of steps reads the timestep, once a forward and before the model begins; no layer does.
    monkeypatch.setattr(step_tracker, "_as_number", lambda timestep: 500.0)
    case = tiny.build(name)
    case.model.to("meta")
    case.args = {key: on_meta(value) for key, value in case.args.items()}
    alone = waits(case)
    with genkit.patch(case.model, method, backend="triton"):
        waits(case)  # tables of the layout are made once
        patched = waits(case)
    sites = case.roles.get("self", 0) + case.roles.get("joint", 0)
    kind = "token_select" if isinstance(method, MixtureOfBlock) else "block_sparse"
    for operator in (kind, f"{kind}_backward"):
        assert patched.every[f"genkit.{operator}.default"] >= sites > 0
    assert patched.found == alone.found
