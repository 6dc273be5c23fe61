"""Strengths by layer mean whole names, strengths by step follow the sampling loop, and both come back from a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import genkit
from genkit.errors import GenkitError, UsageError
from genkit.lora.facts import Facts
from genkit.lora.save import save_lora
from genkit.lora.strengths import StepFactors, layer_factors
from genkit.pipelines.load import load
from genkit.pipelines.request import COMMAND_LINE
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import run
from genkit.pipelines.settings import GenerateSettings

LAYERS = ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q", "blocks.1.attn2.to_k")


@pytest.fixture
def lora(tmp_path):
    random = torch.Generator().manual_seed(0)
    halves = {name: (torch.randn(2, 32, generator=random), torch.randn(32, 2, generator=random), 1) for name in LAYERS}
    return save_lora(tmp_path / "l.safetensors", {"transformer": halves}, Facts())


def scales(pipeline, name="lora0"):
    return {layer: float(pipeline.transformer.get_submodule(layer).scaling[name]) for layer in LAYERS}


def test_names_are_whole_and_the_longest_counts():
    paths = [f"transformer.blocks.{number}.{kind}.to_q" for number in (1, 10) for kind in ("attn1", "attn2")]
    found = layer_factors(paths, {"blocks.1": 0.5, "attn2": 0.1, "blocks.10.attn2": 2})
    assert list(found.values()) == [0.5, 0.5, 1.0, 2.0]
    assert set(layer_factors(paths, {"transformer": 3}).values()) == {3.0}
    for wrong in ({"blocks.2": 1}, {"block": 1}, {"blocks.1": 1e30}, {"attn2": float("nan")}):
        with pytest.raises(GenkitError, match="--lora-layers"):
            layer_factors(paths, wrong)


def test_steps_are_ranges_with_factors():
    assert StepFactors.parse("0:2").at(4) == [1, 1, 0, 0]
    assert StepFactors.parse("0:1=0.5,-1:=2").at(3) == [0.5, 0, 2]
    for text in ("", "x", "0:2=", "0:2=nan", "0:2=1e9", "=1"):
        with pytest.raises(GenkitError, match="--lora-steps"):
            StepFactors.parse(text)
    with pytest.raises(GenkitError, match="there are 3 steps"):
        StepFactors.parse("0:4").at(3)
    with pytest.raises(GenkitError, match="two ranges hold step 1"):
        StepFactors.parse("0:2,1:").at(3)


def test_load_lora_adds_beside_what_is_there_and_leaves_its_strengths(tiny_wan, lora):
    pipeline = load(tiny_wan)
    first = genkit.load_lora(pipeline, lora, 0.5, layers={"blocks.1": 0.5})
    assert (first.name, first.modules, first.facts) == ("lora0", 3, Facts()) and first.told == ()
    before = scales(pipeline)
    assert list(before.values()) == [0.5, 0.25, 0.25]
    second = genkit.load_lora(pipeline, str(lora), -1)
    assert second.name == "lora1" and scales(pipeline) == before and set(scales(pipeline, "lora1").values()) == {-1.0}
    layer = pipeline.transformer.get_submodule(LAYERS[0])
    assert set(layer.active_adapters) == {"lora0", "lora1"}
    inputs = torch.randn(1, 32)
    change = layer(inputs) - layer.base_layer(inputs)
    whole = layer.lora_B["lora0"](layer.lora_A["lora0"](inputs)) * 0.5 - layer.lora_B["lora1"](
        layer.lora_A["lora1"](inputs)
    )
    torch.testing.assert_close(change, whole, atol=1e-5, rtol=1e-5)
    for wrong in ({"strength": 1e30}, {"layers": {"blocks.7": 1}}, {"steps": "x"}, {"part": "transformer_2"}):
        with pytest.raises(GenkitError):
            genkit.load_lora(pipeline, lora, **wrong)
    assert scales(pipeline) == before


def ask(tiny_wan, path, **more):
    given = {"prompt": "a red circle", "model": str(tiny_wan), "seed": 1, "steps": 3, "lora": [str(path)]}
    return GenerateSettings.from_mappings((COMMAND_LINE, given | more))


def test_a_lora_acts_in_its_steps_alone(tiny_wan, lora):
    """All steps are the whole LoRA, no step is none of it, some steps are neither; records repeat."""
    whole, none = run(ask(tiny_wan, lora)).frames, run(ask(tiny_wan, f"{lora}@0")).frames
    assert np.array_equal(run(ask(tiny_wan, lora, lora_steps="0:3")).frames, whole)
    assert np.array_equal(run(ask(tiny_wan, lora, lora_steps="0:3=0")).frames, none)
    part = run(ask(tiny_wan, lora, lora_steps="0:1=2", lora_layers={"blocks.1": 0.5}))
    assert not np.array_equal(part.frames, whole) and not np.array_equal(part.frames, none)
    stored = part.record["settings"]
    assert stored["lora_steps"] and stored["lora_layers"]
    again = run(GenerateSettings.from_mappings(stored=("l.mp4", stored)))
    assert np.array_equal(again.frames, part.frames) and again.record == part.record


def test_strengths_of_steps_are_those_of_the_loop(tiny_wan, lora):
    pipeline = load(tiny_wan)
    genkit.load_lora(pipeline, lora, 0.5, steps="1:2=3")
    seen = []
    pipeline.transformer.get_submodule(LAYERS[0]).register_forward_pre_hook(
        lambda layer, args: seen.append(float(layer.scaling["lora0"]))
    )
    call = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 32, "width": 48, "num_frames": 5}
    for _ in range(2):
        pipeline("a red circle", output_type="latent", max_sequence_length=16, **call)
    assert seen == [0, 1.5, 0] * 2


def test_a_compiled_model_is_not_compiled_anew_for_another_step(tiny_wan, lora):
    from torch._dynamo.testing import CompileCounter

    pipeline = load(tiny_wan)
    genkit.load_lora(pipeline, lora, steps="1:2")
    counter = CompileCounter()
    layer = pipeline.transformer.get_submodule(LAYERS[0])
    compiled = torch.compile(layer, backend=counter)
    inputs, found = torch.randn(1, 32), []
    for scale in (0.0, 1.0, 0.3):
        layer.scaling["lora0"].fill_(scale)
        found.append(compiled(inputs))
    torch._dynamo.reset()
    assert counter.frame_count == 1 and not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"lora_layers": "blocks.7=1"}, "--lora-layers.*blocks.7"),
        ({"lora_layers": "blocks.1=x"}, "--lora-layers blocks.1"),
        ({"lora_layers": ["blocks.1=1", "blocks.0=1"]}, "one for all files or 1"),
        ({"lora_steps": "0:9"}, "there are 3 steps"),
        ({"lora_steps": "often"}, "--lora-steps"),
        ({"lora_steps": "0:1", "lora": []}, "--lora-steps needs --lora"),
        ({"lora_layers": "blocks.1=1", "lora": []}, "--lora-layers needs --lora"),
        ({"lora_mask": "mask.png", "lora": []}, "--lora-mask needs --lora"),
        ({"lora_partial": True, "lora": []}, "--lora-partial needs --lora"),
    ],
)
def test_what_has_no_meaning_is_refused_before_weights_are_read(tiny_wan, lora, more, told):
    with pytest.raises(GenkitError, match=told):
        resolve(ask(tiny_wan, lora, **more))


WRONG = [
    ({"strength": "x"}, "strength: got 'x', allowed: a number from -100 to 100"),
    ({"strength": None}, "strength: got None"),
    ({"strength": True}, "strength: got True"),
    ({"strength": float("nan")}, "strength: got nan"),
    ({"layers": {"blocks.0": "a"}}, "blocks.0: got 'a', allowed: a number from -100 to 100"),
    ({"layers": {"blocks.0": None}}, "blocks.0: got None"),
    ({"layers": {0: 1.0}}, "got 0, allowed: names of layers"),
    ({"layers": "blocks.0=1"}, "layers: got 'blocks.0=1', allowed: factors by name"),
    ({"layers": ["blocks.0"]}, "layers: got .*allowed: factors by name"),
    ({"steps": 5}, "steps: got 5, allowed: ranges of steps"),
    ({"steps": ["0:2"]}, "steps: got .*allowed: ranges of steps"),
    ({"steps": "5:2"}, "steps: got '5:2', allowed: ranges of steps .*; 5:2 ends before it begins"),
    ({"steps": "0:1,-2:-4=0.5"}, "-2:-4 ends before it begins"),
    ({"part": 5}, "part: got 5, allowed: the name of a part"),
    ({"partial": "yes"}, "partial: got 'yes', allowed: True or False"),
]


@pytest.mark.parametrize(("given", "told"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_values_of_another_kind_are_refused_in_one_line_and_nothing_is_loaded(tiny_wan, lora, given, told):
    pipeline = load(tiny_wan)
    with pytest.raises(UsageError, match=told):
        genkit.load_lora(pipeline, lora, **given)
    assert not hasattr(pipeline.transformer.get_submodule(LAYERS[0]), "lora_A")


@pytest.mark.parametrize("file", [5, None, {}, {"a": 1}, ["l.safetensors"], b"l.safetensors", ""], ids=repr)
def test_files_that_are_no_path_are_refused(tiny_wan, lora, monkeypatch, file):
    monkeypatch.chdir(lora.parent)  # where the current folder would be a LoRA
    with pytest.raises(UsageError, match="LoRA: got .*allowed: a path that a file can have"):
        genkit.load_lora(load(tiny_wan), file)


@pytest.mark.parametrize("name", ["l", "l.bin", "l.safetensors.bak", "l.SAFETENSORS"])
def test_a_file_of_any_name_is_the_same_lora(tiny_wan, lora, name):
    own, other = load(tiny_wan), load(tiny_wan)
    genkit.load_lora(own, lora, 0.5)
    copy = lora.rename(lora.parent / name)
    found = genkit.load_lora(other, copy, 0.5)
    assert (found.modules, found.facts) == (3, Facts()) and scales(other) == scales(own)
    inputs = torch.randn(1, 32)
    for layer in LAYERS:
        one, two = (pipeline.transformer.get_submodule(layer) for pipeline in (own, other))
        assert torch.equal(one(inputs), two(inputs)) and not torch.equal(one(inputs), one.base_layer(inputs))


def test_messages_name_where_the_values_were_given():
    """From Python by the names of arguments, from the command line by its flags."""
    for what in ("steps", "--lora-steps"):
        with pytest.raises(UsageError, match=f"^{what}: two ranges"):
            StepFactors.parse("0:3=1,2:4=0.5", what).at(6)
    with pytest.raises(UsageError, match="^layers"):
        layer_factors(["transformer.blocks.1"], {"none": 1.0}, "layers")
