"""Recipes: strict files, models that match or are refused with the reason, origins of values, and real runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml

import genkit
from genkit.errors import UsageError
from genkit.pipelines.load import load
from genkit.pipelines.recipe_match import Match, denoisers_of, denoisers_of_folder
from genkit.pipelines.recipes import FOLDER, ORIGINS, parse, recipe, recipe_names
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings

GOOD = {
    "description": "one",
    "match": {"model": "WanTransformer3DModel", "config": {"num_layers": 2}},
    "made_for": {"steps": 50, "training": "none"},
    "parts": [{"attention": "radial", "attention_args": {"decay_factor": 0.2}, "schedule": {"steps": "1:"}}],
    "provenance": {"radial.decay_factor": "code: script", "radial.steps": "ours: a guess"},
}

# Class and configuration of the models the shipped recipes name, as their public files give them.
WAN14, WAN13 = ({"num_layers": layers, "num_attention_heads": heads} for layers, heads in ((40, 40), (30, 12)))
MODELS = {
    "wan2.1-14b": [("WanTransformer3DModel", WAN14)],
    "wan2.1-1.3b": [("WanTransformer3DModel", WAN13)],
    "wan2.2-a14b": [("WanTransformer3DModel", WAN14)] * 2,
    "hunyuan-video": [("HunyuanVideoTransformer3DModel", {"num_layers": 20, "num_single_layers": 40})],
    "cogvideox": [("CogVideoXTransformer3DModel", {"attention_head_dim": 64})],
    "mochi": [("MochiTransformer3DModel", {"num_layers": 48})],
    "ltx-video": [("LTXVideoTransformer3DModel", {"in_channels": 128})],
    "ltx-2": [("LTX2VideoTransformer3DModel", {"in_channels": 128, "num_layers": 48})],
    "flux.1": [("FluxTransformer2DModel", {"num_layers": 19, "num_single_layers": 38})],
    "sd3.5-large": [("SD3Transformer2DModel", {"num_layers": 38, "num_attention_heads": 38})],
    "sd1.5": [("UNet2DConditionModel", {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)})],
    "sdxl": [("UNet2DConditionModel", {"cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280]})],
    "toy-video": [("WanTransformer3DModel", {"num_layers": 6, "num_attention_heads": 4, "in_channels": 12})],
}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_say_where_every_value_comes_from(name):
    shipped = recipe(name)
    assert shipped.description and shipped.made_for["models"]
    assert shipped.values and all(value.origin in ORIGINS and value.note for value in shipped.values)
    suited = [model for model, found in MODELS.items() if shipped.why_not(found) is None]
    assert suited == [model for model in MODELS if name.startswith(f"{model}-")]


def test_every_model_of_the_list_has_a_recipe_and_the_wheel_carries_them():
    names = recipe_names()
    assert all(any(name.startswith(f"{model}-") for name in names) for model in MODELS)
    packaging = (Path(genkit.__file__).parents[1] / "pyproject.toml").read_text()
    assert '"recipes/*.yaml"' in packaging and FOLDER == Path(genkit.__file__).parent / "recipes"


def test_published_values():
    radial, second = recipe("wan2.1-14b-radial").parts[0], recipe("wan2.2-a14b-radial").parts[0]
    assert (radial.method.decay_factor, radial.method.block_size, radial.schedule) == (
        0.2, 128, genkit.Schedule(steps="12:", layers="1:")
    )  # fmt: skip
    assert (second.method.decay_factor, second.method.block_size) == (0.8, 64)
    assert second.schedule == genkit.Schedule(steps="11:", layers="1:")
    mixture = recipe("wan2.1-1.3b-mixture").parts[0].method
    blocks = [-(-21 // 3), (30 // 5) * (52 // 13), (21 // 7) * (30 // 5) * (52 // 13)]
    assert (mixture.temporal, mixture.spatial, mixture.box, blocks) == (3, (5, 13), (7, 5, 13), [7, 24, 72])
    windows = recipe("wan2.1-14b-freeswim").parts[0].method.on((21, 68, 120)).windows
    assert [window.size for window in windows] == [21, 45, 81]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"partz": []}, "'partz', allowed: description"),
        ({"parts": []}, "needs parts"),
        ({"parts": {"attention": "radial"}}, "needs parts"),
        ({"parts": ["radial"]}, "part 1 must be a mapping"),
        ({"parts": [{"attention": "radail"}]}, "part 1: attention method: got 'radail'.*did you mean 'radial'"),
        ({"parts": [{"attention": "radial", "when": 1}]}, "part 1: got 'when'"),
        ({"parts": [{"attention": "radial", "attention_args": [1]}]}, "attention_args: got"),
        ({"parts": [{"attention": "radial", "attention_args": {"decay": 1}}]}, "'decay'.*decay_factor"),
        ({"parts": [{"attention": "radial", "attention_args": {"decay_factor": "x"}}]}, "radial.decay_factor"),
        ({"parts": [{"attention": "radial", "schedule": "steps"}]}, "schedule: got 'steps'"),
        ({"parts": [{"attention": "radial", "schedule": {"stepz": 1}}]}, "schedule: got 'stepz'"),
        ({"parts": [{"attention": "radial", "schedule": {"steps": "a:b"}}]}, "part 1: steps: got 'a:b'"),
        ({"parts": [{"attention": "radial", "roles": ["selv"]}]}, "role: got 'selv'"),
        ({"parts": [{"attention": "radial", "roles": 3}]}, "roles: got 3"),
        ({"match": {"config": {}}}, "match must be a mapping with model"),
        ({"match": {"model": "WanTransformer"}}, "match.model: got 'WanTransformer'"),
        ({"match": {"model": "WanTransformer3DModel", "layers": 2}}, "match: got 'layers'"),
        ({"match": {"model": "WanTransformer3DModel", "config": 3}}, "match.config"),
        ({"match": {"model": "WanTransformer3DModel", "denoisers": True}}, "match.denoisers"),
        ({"models": 3}, "models: got 3"),
        ({"description": ["a"]}, "description: got"),
        ({"made_for": {"steps": "50"}}, "made_for.steps: got '50'"),
        ({"made_for": {"training": "full"}}, "made_for.training"),
        ({"measured": "fast"}, "measured: got 'fast'"),
        ({"provenance": {"radial.sink": "code: x"}}, "provenance: got 'radial.sink', allowed: radial.decay_factor"),
        ({"provenance": {"radial.steps": "rumour: x"}}, "provenance of radial.steps"),
    ],
)
def test_wrong_files_get_one_clear_line(change, text):
    with pytest.raises(UsageError, match=text) as caught:
        parse("r", {**GOOD, **change})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("recipe r")


def test_values_carry_their_origin():
    parts = [*GOOD["parts"], {"attention": "radial", "roles": "self"}]
    values = parse("r", {**GOOD, "parts": parts}).values
    assert [(value.name, value.value, value.origin, value.note) for value in values] == [
        ("radial.decay_factor", 0.2, "code", "script"), ("radial.steps", "1:", "ours", "a guess"),
        ("radial#2.roles", "self", None, ""),
    ]  # fmt: skip


def test_patch_takes_a_recipe_and_refuses_other_models(tiny_wan):
    pipe, good = load(tiny_wan), parse("r", GOOD)
    for target in (pipe, pipe.transformer):
        with genkit.patch(target, good, total_steps=2) as handle:
            assert handle.describe() and len(handle.sites) == 2
    with pytest.raises(UsageError, match="num_layers = 40, this model has num_layers = 2"):
        genkit.patch(pipe, genkit.recipe("wan2.1-14b-radial"))
    with pytest.raises(UsageError, match="it is for FluxTransformer2DModel, this model is WanTransformer3DModel"):
        genkit.attn_processors(pipe.transformer, genkit.recipe("flux.1-neighborhood"))
    with pytest.raises(UsageError, match="model: got 'WanPipeline', allowed: Flux"):
        genkit.patch(pipe, parse("r", {**GOOD, "models": ["Flux*"]}))
    assert not pipe.transformer._forward_pre_hooks
    unet = Match.of("r", {"model": "UNet2DConditionModel", "config": {"block_out_channels": [8, 16]}})
    assert unet.why_not(denoisers_of(tiny.build("unet").model)) is None


def test_folders_match_before_weights_are_read(tiny_wan):
    assert denoisers_of_folder(tiny_wan)[0][0] == "WanTransformer3DModel"
    # A value that a file leaves out counts as the class's default.
    match = Match.of("r", {"model": "WanTransformer3DModel", "config": {"eps": 1e-6, "image_dim": None}})
    assert match.why_not([("WanTransformer3DModel", {})]) is None
    assert "no denoiser" in match.why_not([])
    asked = GenerateSettings(prompt="a", model=str(tiny_wan), recipe="sdxl-agent")
    with pytest.raises(UsageError, match="recipe sdxl-agent does not suit this model: it is for UNet2DCondition"):
        resolve(asked)


def test_two_denoisers_share_one_count_of_steps(tiny_wan):
    pipe = load(tiny_wan)
    torch.manual_seed(1)
    second = type(pipe.transformer).from_config(pipe.transformer.config)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.8)
    both = parse("r", {**GOOD, "match": {**GOOD["match"], "denoisers": 2}, "parts": [
        {"attention": "neighborhood", "attention_args": {"size": [1, 1, 1]}, "schedule": {"steps": "1:"}}],
        "provenance": {}})  # fmt: skip
    with pytest.raises(UsageError, match="2 denoisers, this one has 1; patch the whole pipeline"):
        genkit.patch(pipe.transformer, both)
    with genkit.patch(pipe, both) as handle:
        pipe("a red circle", height=32, width=48, num_frames=5, num_inference_steps=4, max_sequence_length=16)
        steps = {site.name: site.steps for site in handle.report().sites}
    first = {step for name, ran in steps.items() if name.startswith("transformer.") for step in ran}
    last = {step for name, ran in steps.items() if name.startswith("transformer_2.") for step in ran}
    assert first and last and max(first) < min(last) and first | last == {1, 2, 3}


def test_generate_with_a_recipe(tiny_wan, tmp_path):
    path = tmp_path / "r.yaml"
    parts = [{"attention": "neighborhood", "attention_args": {"size": [1, 1, 1]}, "schedule": {"steps": "1:"}}]
    path.write_text(yaml.safe_dump({**GOOD, "parts": parts, "provenance": {}}))
    asked = GenerateSettings(prompt="a red circle", model=str(tiny_wan), seed=1, recipe=str(path))
    session = Session(resolve(asked))
    assert session.run().report["ran"] == 4
    assert any("for a run of 50, this run has 2" in line for line in session.warnings)
    # A schedule given beside the recipe takes the place of the recipe's own.
    assert Session(resolve(dataclasses.replace(asked, schedule="steps=0:"))).run().report["ran"] == 8
    with pytest.raises(UsageError, match="there are 2 steps"):
        resolve(dataclasses.replace(asked, schedule="steps=7:"))


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({"steps": "5:10"}, "schedule steps=5:10: there are 2 steps.*for a run of 50, this run has 2"),
        ({"layers": "7:"}, "schedule layers=7:: there are 2 layers.*--schedule"),
    ],
)
def test_a_range_of_a_recipe_that_does_not_fit_is_told_as_the_recipes(tiny_wan, tmp_path, schedule, told):
    path = tmp_path / "r.yaml"
    parts = [{"attention": "neighborhood", "attention_args": {"size": [1, 1, 1]}, "schedule": schedule}]
    path.write_text(yaml.safe_dump({**GOOD, "parts": parts, "provenance": {}}))
    asked = GenerateSettings(prompt="a red circle", model=str(tiny_wan), seed=1, recipe=str(path))
    with pytest.raises(UsageError, match=told) as caught:
        resolve(asked)
    assert str(caught.value).startswith("--recipe ")
    with pytest.raises(UsageError) as caught:
        resolve(dataclasses.replace(asked, schedule="steps=7:"))
    assert str(caught.value).startswith("schedule steps=7:")


def test_records_are_plain():
    from genkit.cli.recipes import describe

    text = json.dumps([describe(recipe(name)) for name in recipe_names()])
    assert '"origin": "paper"' in text
