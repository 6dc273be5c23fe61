"""Builds each of the tiny models once."""

from __future__ import annotations

import gc

import pytest
import tiny
import torch

from genkit.patching import interception

torch.set_num_threads(1)
_BUILT: dict[str, tiny.Tiny] = {}


@pytest.fixture
def tiny_model():
    """A function from variant name to a shared tiny model; a test must leave it as it was."""

    def get(name: str) -> tiny.Tiny:
        if name not in _BUILT:
            _BUILT[name] = tiny.build(name)
        return _BUILT[name]

    return get


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After every test: no record on the stack, no pass-through in place."""
    yield
    if interception.INTERCEPTION.installed:
        gc.collect()  # a model that was dropped with its patch
    assert interception.depth() == 0
    assert not interception.INTERCEPTION.installed, "a test left a patch behind"
