"""Quantised denoisers: what is missing is told with how to get it; settings reach the quantiser as values."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError
from genkit.training.lora import quantise

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", quantise.BACKENDS)
def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda given: None)
    monkeypatch.setattr(quantise, "find_spec", lambda given: None)
    with pytest.raises(UnsupportedError, match=f"needs the package .*pip install {quantise.BACKENDS[name]}"):
        quantise.check_backend(name, GPU)


def test_bitsandbytes_needs_a_gpu_and_torchao_none(monkeypatch):
    monkeypatch.setattr(quantise, "find_spec", lambda given: object())
    with pytest.raises(UnsupportedError, match="needs a GPU; on the CPU: torchao or quanto"):
        quantise.check_backend("bitsandbytes_4bit", CPU)
    quantise.check_backend("torchao", CPU)
    quantise.check_backend("bitsandbytes_4bit", GPU)


def test_texts_reach_torchao_as_values_and_unknown_names_are_refused(monkeypatch):
    class Int8WeightOnlyConfig:
        def __init__(self, group_size=None, exact=False):
            self.told = (group_size, exact)

    module = types.ModuleType("torchao.quantization")
    module.Int8WeightOnlyConfig = module.Int4WeightOnlyConfig = Int8WeightOnlyConfig
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    given = {key: quantise._value(value) for key, value in {"group_size": "32", "exact": "true"}.items()}
    assert quantise._torchao(given).told == (32, True)
    with pytest.raises(UsageError, match="did you mean 'Int4WeightOnlyConfig'"):
        quantise._torchao({"config": "Int4WeightOnly"})


def test_a_denoiser_that_stayed_as_it_was_is_refused():
    with pytest.raises(UnsupportedError, match="quantised no layer of Linear"):
        quantise.check_quantised("torchao", nn.Linear(4, 4))
    changed = nn.Linear(4, 4)
    changed.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    quantise.check_quantised("torchao", changed)
