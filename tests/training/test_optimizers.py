"""Optimizers by name: the usual ones, any class of torch's, arguments as texts, everything unknown refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError
from genkit.training.engine.keep import Numbered
from genkit.training.engine.loop import LoopConfig, train
from genkit.training.engine.optimizers import NAMES, optimizer_of


def made(name, **more):
    return optimizer_of(name, list(nn.Linear(4, 4).named_parameters()), 0.1, **more)


def test_names_give_their_classes_with_arguments_read_from_texts():
    adamw = made("adamw", weight_decay=0.02, arguments={"betas": "(0.8, 0.9)", "amsgrad": "true"})
    assert type(adamw) is torch.optim.AdamW
    group = adamw.param_groups[0]
    assert (group["betas"], group["amsgrad"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), True, 0.02, 0.1)
    assert type(made("SGD", arguments={"momentum": 0.9})) is type(made("torch.optim.SGD")) is torch.optim.SGD
    muon = made("muon", weight_decay=0.3, arguments={"momentum": "0.8"})
    assert muon.param_groups[0]["muon"] and muon.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("adam_w", {}, "did you mean 'adamw'"),
        ("torch.optim.Optimizer", {}, "allowed: adamw"),
        ("lr_scheduler", {}, "allowed: adamw"),
        ("adamw", {"beta": 1}, "did you mean 'betas'"),
        ("adamw", {"lr": 1}, "allowed: betas"),
        ("adamw", {"betas": "0.9"}, "optimizer_args: adamw refuses them"),
        ("muon", {"named": 1}, "allowed: momentum, betas"),
    ],
)
def test_what_no_optimizer_has_is_refused(name, arguments, match):
    with pytest.raises(UsageError, match=match):
        made(name, arguments=arguments)


def test_a_decay_without_effect_a_missing_package_and_lbfgs_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="weight_decay: Rprop has none"):
        made("Rprop", weight_decay=0.1)
    monkeypatch.setattr("genkit.training.engine.optimizers.find_spec", lambda name: None)
    for name in ("adamw_8bit", "prodigy"):
        with pytest.raises(UnsupportedError, match=f"optimizer {name} needs the package .*pip install"):
            made(name)
    with pytest.raises(UnsupportedError, match="LBFGS"):
        made("LBFGS")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw_8bit"] + ["SGD", "Adafactor"])
def test_stopped_runs_end_with_the_same_bits(tmp_path, name):
    def loss_at(module, number, progress):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        return (module(x) - x.flip(1)).square().mean(), {}

    def run(folder, *stops):
        for steps in stops:
            torch.manual_seed(0)
            model = nn.Linear(4, 4)
            optimizer = optimizer_of(name, list(model.named_parameters()), 1.0 if name == "prodigy" else 0.05)
            config = LoopConfig(folder, lr=optimizer.param_groups[0]["lr"], steps=steps, lr_scheduler="constant")
            train(model, optimizer, loss_at, config, keep=Numbered(folder, "latest"))
        return model.weight.detach()

    torch.manual_seed(0)
    start = nn.Linear(4, 4).weight.detach()
    whole = run(tmp_path / "whole", 6)
    assert torch.equal(whole, run(tmp_path / "parts", 2, 3, 6)) and not torch.equal(whole, start)
