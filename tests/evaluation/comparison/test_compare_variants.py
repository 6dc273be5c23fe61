"""How variants are written, and what is refused."""

from __future__ import annotations

import pytest

from genkit.errors import UsageError
from genkit.evaluation.comparison.caches import caches, parse_cache
from genkit.evaluation.comparison.variants import (
    Variant,
    attention_variant,
    from_mapping,
    short_names,
    with_baseline,
    written_variant,
)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("radial", {"attention": "radial"}),
        ("radial:block_size=64", {"attention": "radial", "attention_args": {"block_size": "64"}}),
        ("radial@recommended", {"attention": "radial", "schedule": "recommended"}),
        ("radial@steps=4:,layers=1:", {"attention": "radial", "schedule": "steps=4:,layers=1:"}),
        (
            "neighborhood:size=3x5x5,dilation=1@steps=2:",
            {
                "attention": "neighborhood",
                "attention_args": {"size": "3x5x5", "dilation": "1"},
                "schedule": "steps=2:",
            },
        ),
        ("agent:weights=a@b.st", {"attention": "agent", "attention_args": {"weights": "a@b.st"}}),
    ],
)  # fmt: skip
def test_attention_in_one_word(text, settings):
    assert attention_variant(text).settings == settings


def test_methods_are_called_by_their_names_where_that_tells_them_apart():
    texts = ["radial@steps=2:", "neighborhood:size=3x5x5", "neighborhood:size=5x7x7"]
    assert [each.name for each in short_names([attention_variant(text) for text in texts])] == ["radial", *texts[1:]]


def test_any_settings():
    found = written_variant("mine: attention=radial; schedule=steps=4:; lora=a.safetensors; lora=b.safetensors@0.5")
    assert found.name == "mine" and found.settings == {
        "attention": "radial", "schedule": "steps=4:", "lora": ["a.safetensors", "b.safetensors@0.5"],
    }  # fmt: skip
    assert written_variant("flow-shift=5; steps=3; vae_tiling=true").settings == {
        "flow_shift": 5.0, "steps": 3, "vae_tiling": True,
    }  # fmt: skip
    assert from_mapping("x", "radial@steps=4:").settings["schedule"] == "steps=4:"
    assert from_mapping("x", None) == Variant("x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attention_variant(":size=3"), "a method"),
        (lambda: attention_variant("radial:size"), "radial"),
        (lambda: written_variant("mine: attention"), "NAME: setting=value"),
        (lambda: written_variant("mine: steps=few"), "--steps of a variant"),
        (lambda: written_variant("mine: fast=perhaps"), "--fast of a variant"),
        (lambda: written_variant("mine: seed=3"), "seed.*allowed: attention"),
        (lambda: from_mapping("mine", {"height": 64}), "height"),
        (lambda: from_mapping("mine", 3), "names and values"),
        (lambda: with_baseline([], "dense"), "nothing to compare"),
        (lambda: with_baseline([written_variant(": steps=3")], "dense"), "no name.*steps=3"),
        (lambda: with_baseline([from_mapping(" ", "radial")], "dense"), "no name.*attention=radial"),
        (lambda: with_baseline([Variant("a"), written_variant("dense: steps=3")], "dense"), "own attention.*steps=3"),
        (lambda: with_baseline([Variant("a"), from_mapping("dense", "radial")], "a"), "own attention.*another name"),
        (lambda: with_baseline([Variant("a"), Variant("a")], "dense"), "two variants are called 'a'"),
        (lambda: with_baseline([Variant("radial")], "radal"), "did you mean 'radial'"),
        (lambda: parse_cache("first_blok"), "did you mean 'first_block'"),
        (lambda: parse_cache("first_block:treshold=0.1"), "did you mean 'threshold'"),
        (lambda: parse_cache("first_block:threshold=much"), "threshold of --cache first_block"),
        (
            lambda: parse_cache("pyramid_attention_broadcast:spatial_attention_timestep_skip_range=3"),
            "two whole numbers",
        ),
        (
            lambda: parse_cache("pyramid_attention_broadcast:spatial_attention_timestep_skip_range=800x100"),
            "the first below the second",
        ),
        (lambda: parse_cache("first_block:threshold=-0.1"), "a number from 0"),
        (lambda: parse_cache("taylor_seer:max_order=-1"), "a number from 0"),
        (lambda: parse_cache("taylor_seer:cache_interval=0"), "a whole number from 1"),
        (lambda: parse_cache("pyramid_attention_broadcast:spatial_attention_block_skip_range=0"), "number from 1"),
        (lambda: parse_cache("mag"), "--cache mag: Diffusers refuses it: .*mag_ratios"),
    ],
)  # fmt: skip
def test_wrong_variants_are_refused_with_what_is_allowed(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_the_baseline_comes_first():
    found = with_baseline([Variant("a"), Variant("b")], "b")
    assert [each.name for each in found] == ["b", "a"]
    assert [each.name for each in with_baseline([Variant("a")], "dense")] == ["dense", "a"]


def test_caches_are_those_of_diffusers():
    assert {"first_block", "pyramid_attention_broadcast", "faster"} <= set(caches())
    assert parse_cache("first_block:threshold=0.25").threshold == 0.25
    found = parse_cache("pyramid_attention_broadcast:spatial_attention_block_skip_range=2")
    assert found.spatial_attention_block_skip_range == 2
    assert parse_cache("taylor_seer:use_lite_mode=true").use_lite_mode is True
