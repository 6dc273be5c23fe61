"""Attention in the loop: what is patched in while a LoRA trains, what is refused, and weights of methods beside it."""

from __future__ import annotations

import json

import pytest
import torch
from memory import MemorySamples, load, task_of
from safetensors import safe_open
from test_lora_run import cache, data, settings  # noqa: F401 - fixtures

from genkit.attention.agent import Agent
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.lora.files import NAMED
from genkit.patching import Schedule, patch
from genkit.pipelines.attention import Attention
from genkit.pipelines.settings import AttentionSettings
from genkit.training.lora.attention import check_trainable, put_in, timeless
from genkit.training.lora.files import ATTENTION
from genkit.training.lora.run import Run, train_lora

SIZES = {
    "neighborhood": {"size": "1x3x3"},
    "radial": {"block_size": "8", "decay_factor": "0.1", "near": "decay", "sink": "false"},
    "mixture_of_block": {"temporal": "1", "spatial": "2,2", "box": "1,2,2"},
    "agent": {},
}


def attention_of(name: str, schedule: str | None = None, **args) -> Attention:
    return Attention.of(AttentionSettings(attention=name, attention_args=args, schedule=schedule))


@pytest.mark.parametrize("name", SIZES)
def test_gradients_go_through_the_method_at_every_level(tiny_wan, name):
    pipeline, samples = load(tiny_wan), MemorySamples(shape=(4, 3, 16, 16))
    task = task_of(pipeline)
    plain, _ = task(samples.batch(0), 0)
    handle, weights, told = put_in(pipeline.transformer, attention_of(name, **SIZES[name]), False)
    loss, _ = task(samples.batch(0), 0)
    loss.backward()
    assert weights is None and told == [] and not torch.equal(loss, plain)
    assert any(value.grad.any() for value in task.adapter.parameters.values())
    for number in range(1, 4):
        task(samples.batch(0), number)
    report = handle.report()
    assert report.ran and not report.declined
    handle.remove()
    assert torch.equal(task(samples.batch(0), 0)[0], plain)


def test_steps_and_branches_are_left_out_and_told_and_layers_stay():
    parts, told = timeless(attention_of("radial", "steps=10:-2,layers=1:,branches=cond"))
    assert parts[0].schedule == Schedule(layers="1:")
    assert told == [
        "attention: radial is trained at all noise levels; steps and branches of its schedule are for sampling alone"
    ]


def test_what_cannot_be_trained_through_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="sliding_window cannot be trained through.*allowed: agent"):
        check_trainable(attention_of("sliding_window"))
    for name in ("reference", "motion_boxes"):
        with pytest.raises(UnsupportedError, match=f"{name} is not for training a LoRA: .*genkit train weights {name}"):
            check_trainable(attention_of(name))
    with pytest.raises(UnsupportedError) as found:
        check_trainable(attention_of("sliding_window"))
    assert "reference" not in str(found.value) and "motion_boxes" not in str(found.value)


def test_a_term_that_would_stay_zero_is_refused(tiny_flux):
    pipeline = load(tiny_flux)
    with pytest.raises(UsageError, match="would stay there; add --train-attention-weights, or give trained ones"):
        put_in(pipeline.transformer, attention_of("shared_cross_attention"), False)
    assert not pipeline.transformer._forward_hooks


def test_weights_are_trained_only_where_there_are_some(tiny_wan):
    pipeline = load(tiny_wan)
    with pytest.raises(UsageError, match="radial has no weights of its own"):
        put_in(pipeline.transformer, attention_of("radial"), True)
    handle, weights, _ = put_in(pipeline.transformer, attention_of("agent", form="trained"), False)
    assert weights is None and not any(value.requires_grad for value in handle.weights.parameters())


def test_the_methods_weights_train_and_are_saved_beside_the_lora(tiny_wan, data, cache, tmp_path):  # noqa: F811
    more = {"attention": "agent", "attention_args": {"form": "trained"}, "train_attention_weights": True}
    run = Run.open(settings(tiny_wan, data, cache, tmp_path / "a", **more))
    start = {name: value.detach().clone() for name, value in run.weights.named_weights().items()}
    output = run.go().parent
    assert PatchWeights.settings_of(output / ATTENTION)["agent"]["form"] == "trained"
    with patch(load(tiny_wan), Agent(form="trained")) as handle:
        handle.weights.load(output / ATTENTION)
        stored = handle.weights.named_weights()
        assert all(torch.equal(stored[name], value) for name, value in run.weights.named_weights().items())
    assert any(not torch.equal(stored[name], value) for name, value in start.items())
    with safe_open(output / NAMED, "pt") as file:
        facts = json.loads(file.metadata()["genkit"])
    assert facts["attention"] == "agent" and facts["attention_weights"] == ATTENTION
    # Going on from a checkpoint takes the method's weights, too.
    cut = settings(tiny_wan, data, cache, tmp_path / "b", max_train_steps=4, **more)
    opened = Run.open(cut)
    calls, batch = iter(range(3)), opened.samples.batch
    opened.samples.batch = lambda number, rank: batch(number + 0 * next(calls), rank)
    with pytest.raises(StopIteration):
        opened.go()
    again = train_lora(settings(tiny_wan, data, cache, tmp_path / "b", resume_from_checkpoint="latest", **more)).parent
    for name in (NAMED, ATTENTION):
        assert (again / name).read_bytes() == (output / name).read_bytes(), name


@pytest.mark.slow
def test_a_compiled_denoiser_has_the_same_loss(tiny_wan, data, cache, tmp_path, monkeypatch):  # noqa: F811
    compiled, real = [], torch.nn.Module.compile

    def traced(self, *args, **kwargs):  # without the seconds that code for the machine takes
        compiled.append(type(self).__name__)
        return real(self, *args, backend="aot_eager", **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    found = []
    for wanted in (False, True):
        run = Run.open(settings(tiny_wan, data, cache, tmp_path / "x", compile=wanted, attention="radial"))
        loss, _ = run.task(run.samples.batch(0), 0)
        loss.backward()
        found.append([loss.detach(), *(value.grad for value in run.adapter.parameters.values())])
    assert compiled == ["WanTransformerBlock"] * 2
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))
