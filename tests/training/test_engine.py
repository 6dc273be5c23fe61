"""The engine's options: accumulation, precision, recomputed activations, exact resuming, what a checkpoint holds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError
from genkit.training.engine.checkpoint import atomic_save, load_checkpoint, load_ema
from genkit.training.engine.ema import EMA
from genkit.training.engine.loop import LoopConfig, train
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.engine.optim import muon_adamw
from genkit.training.engine.random_state import random_state, set_random_state, undisturbed


def rows(number: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(number))


def squares(module: nn.Module, number: int, progress: float):
    x = rows(number)
    return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path):
    def large(module: nn.Module, number: int, progress: float):
        x = torch.cat([rows(3 * number + part) for part in range(3)])
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    found = {}
    for name, loss, count in (("parts", squares, 3), ("whole", large, 1), ("part", squares, 1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        config = LoopConfig(tmp_path / name, lr=0.05, steps=4, warmup=1, gradient_accumulation_steps=count)
        train(model, torch.optim.SGD(model.parameters(), 0.05), loss, config)
        found[name] = weights(model)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found["parts"], found["whole"], strict=True))
    assert not torch.allclose(found["parts"][0], found["part"][0], atol=1e-3)


def test_recomputed_activations_give_equal_gradients():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=2, rope_max_seq_len=16,
    ).train()  # fmt: skip
    inputs = (torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 8))

    def gradients():
        model.zero_grad()
        model(*inputs, return_dict=False)[0].square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients()
    assert len(calls) == 1
    assert checkpoint_gradients(nn.ModuleDict({"network": model})) == ["WanTransformer3DModel"]
    again = gradients()
    assert len(calls) == 3  # once forward, once more in the backward pass
    assert same(plain, again)


def test_recomputing_what_cannot_be_is_refused(tmp_path):
    config = LoopConfig(tmp_path, lr=0.1, steps=1, gradient_checkpointing=True)
    model = network()
    with pytest.raises(UsageError, match="no part of Dropout, Linear, Tanh offers it"):
        train(model, torch.optim.SGD(model.parameters(), 0.1), squares, config)


@pytest.mark.parametrize("make", [lambda m: torch.optim.AdamW(m.parameters(), 0.01), lambda m: muon_adamw(
    m.named_parameters(), lr=0.01)], ids=["adamw", "muon"])  # fmt: skip
def test_a_resumed_run_repeats_the_unbroken_one_bit_for_bit(tmp_path, make):
    class Stop(Exception):
        pass

    def run(folder, stops=()):
        seen = []

        def loss_at(module, number, progress):
            if number in left:
                left.remove(number)
                raise Stop
            noise = float(np.random.rand()) + random.random()  # global generators, as dropout uses torch's
            loss, _ = squares(module, number, progress)
            seen.append(loss.item() + noise)
            return loss * (1 + 0.1 * noise), {}

        left = set(stops)
        while True:
            model = network()
            random.seed(len(seen)), np.random.seed(len(seen)), torch.manual_seed(0)
            config = LoopConfig(
                folder, lr=0.05, steps=12, checkpoint_steps=1, gradient_accumulation_steps=2, ema_decay=0.9
            )
            try:
                ema = train(model, make(model), loss_at, config)
            except Stop:
                continue
            return weights(model), list(ema.shadow.values()), seen

    unbroken, broken = run(tmp_path / "a"), run(tmp_path / "b", stops=(6, 14, 20))
    assert unbroken[2] == broken[2]
    assert same(unbroken[0], broken[0]) and same(unbroken[1], broken[1])
    assert load_checkpoint(tmp_path / "b" / "checkpoint.pt")["count"] == 12


def test_only_trainable_parameters_are_averaged_and_stored(tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    train(
        model, torch.optim.SGD(model.parameters(), 0.1), squares, LoopConfig(tmp_path, lr=0.1, steps=3, ema_decay=0.5)
    )
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    trained = {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert state["ema"].keys() == trained
    assert state["module"].keys() == trained | {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert torch.equal(model[0].weight, frozen)
    other = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    other[0].requires_grad_(False)
    load_ema(other, tmp_path / "checkpoint.pt")
    assert torch.equal(other[2].weight, state["ema"]["2.weight"])
    assert not torch.equal(other[2].weight, model[2].weight)
    assert torch.equal(other[1].running_mean, model[1].running_mean) and int(other[1].num_batches_tracked) == 3


def test_checkpoints_of_earlier_versions_are_resumed(tmp_path):
    model, path = network(), tmp_path / "checkpoint.pt"
    optimizer = muon_adamw(model.named_parameters(), lr=0.01)
    train(model, optimizer, squares, LoopConfig(tmp_path, lr=0.01, steps=3))
    state = load_checkpoint(path)
    old = {name: state[name] for name in ("optimizer", "count", "step", "seconds")}
    full = {**state["module"], "3.extra": torch.zeros(1)}
    atomic_save({**old, "module": state["module"], "average": state["ema"]}, path)
    ema = train(
        network(), muon_adamw(network().named_parameters(), lr=0.01), squares, LoopConfig(tmp_path, 0.01, steps=3)
    )
    assert all(torch.equal(ema.shadow[name], value) for name, value in state["ema"].items()) and ema.count == 3
    atomic_save({**old, "module": full, "average": state["ema"]}, path)
    with pytest.raises(ArtifactError, match=r"1 tensor that this model does not have, such as 3\.extra"):
        train(network(), optimizer, squares, LoopConfig(tmp_path, lr=0.01, steps=4))


def test_a_checkpoint_of_another_model_is_told(tmp_path):
    model = network()
    train(model, torch.optim.SGD(model.parameters(), 0.1), squares, LoopConfig(tmp_path, lr=0.1, steps=1))
    wide = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
    with pytest.raises(ArtifactError, match=r"0\.weight has the shape \(8, 6\) in .* \(16, 6\) here"):
        train(wide, torch.optim.SGD(wide.parameters(), 0.1), squares, LoopConfig(tmp_path, lr=0.1, steps=2))
    deep = nn.Sequential(*model, nn.Linear(1, 1))
    with pytest.raises(ArtifactError, match=r"lacks 4\.weight, which is trained here"):
        train(deep, torch.optim.SGD(deep.parameters(), 0.1), squares, LoopConfig(tmp_path, lr=0.1, steps=2))
    model = network()
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    with pytest.raises(ArtifactError, match=r"an optimizer of \[4\] parameters, this run one of \[1, 1, 1, 1\]"):
        train(model, torch.optim.SGD(groups, 0.1), squares, LoopConfig(tmp_path, lr=0.1, steps=2))
    atomic_save({"step": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ArtifactError, match="lacks count, ema, module, optimizer, seconds"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_bfloat16_products_change_little_and_weights_stay_float32(tmp_path):
    found = {}
    for precision in ("no", "bf16", None):
        dtypes = set()

        def loss_at(module, number, progress, dtypes=dtypes):
            module[0].register_forward_hook(lambda part, given, out: dtypes.add(out.dtype))
            return squares(module, number, progress)

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        config = LoopConfig(tmp_path / str(precision), lr=0.05, steps=5, warmup=1, mixed_precision=precision)
        train(model, torch.optim.SGD(model.parameters(), 0.05), loss_at, config)
        found[precision] = weights(model)
        assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert model(rows(0)).dtype == torch.float32 and "forward" not in vars(model.forward.__func__)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert same(found["no"], found[None]) and not same(found["no"], found["bf16"])
    assert all(torch.allclose(a, b, atol=0.02) for a, b in zip(found["no"], found["bf16"], strict=True))


def test_validation_sees_averages_in_evaluation_mode_and_disturbs_nothing(tmp_path):
    seen = []

    def validate(module: nn.Module, step: int) -> None:
        seen.append((module.training, module[0].weight.clone()))
        torch.rand(7), np.random.rand(), random.random()

    found = []
    for watched in (False, True):
        torch.manual_seed(3)
        model = network()
        config = LoopConfig(tmp_path / str(watched), lr=0.05, steps=4, validation_seconds=1e-9)
        train(model, torch.optim.SGD(model.parameters(), 0.1), squares, config, validate if watched else None)
        found.append(weights(model))
        assert model.training and model[2].training
    assert same(*found) and len(seen) == 4
    assert not seen[-1][0] and not torch.equal(seen[-1][1], found[1][0])


def test_generators_go_on_where_they_were():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    np.random.randn()  # leaves half of a pair behind

    def draws():
        return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(1))

    state = random_state()
    first = draws()
    set_random_state(state)
    with undisturbed():
        assert draws() == first
        draws()
    assert draws() == first


def test_an_average_of_equal_weights_is_these_weights_and_follows_them():
    model = nn.Linear(3, 1)
    ema = EMA(model, 0.9)
    ema.update(model)
    assert torch.equal(ema.shadow["weight"], model.weight)
    with torch.no_grad():
        model.weight += 1
    before = ema.shadow["weight"].clone()
    ema.update(model)
    assert torch.allclose(ema.shadow["weight"], before + 1 - 3 / 12)  # decay (1 + 2) / (10 + 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr_scheduler": "cosin"}, "lr_scheduler"),
        ({"mixed_precision": "bf61"}, "mixed_precision"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"lr": float("inf")}, "must be positive"),
    ],
)
def test_bad_settings_are_told(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        LoopConfig(tmp_path, **{"lr": 0.1, "steps": 1, **options})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU can do it")
def test_half_precision_on_a_processor_is_refused(tmp_path):
    model = network()
    with pytest.raises(UsageError, match="fp16, which needs a GPU"):
        config = LoopConfig(tmp_path, lr=0.1, steps=1, mixed_precision="fp16")
        train(model, torch.optim.SGD(model.parameters(), 0.1), squares, config)
