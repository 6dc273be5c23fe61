"""Names, settings from text, listing and the plan cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from genkit.attention import registry
from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.radial import Radial
from genkit.attention.site import Site
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

WITHOUT_EFFECT = {
    "agent": [
        {"agents": "merge", "cell": (1, 2, 2)}, {"agents": "merge", "pool": "mean"}, {"ratio": 0.1}, {"seed": 3},
        {"agents": "merge", "count_bias": True}, {"max_downsample": 2}, {"min_tokens": 9}, {"lattice": (1, 7, 7)},
        {"early": 0.1}, {"agent_ratio": 0.5}, {"lines": (1, 2, 3)},
    ],
    "cross_modal_context": [
        {"partition": "soft", "window": 5.0}, {"partition": "none", "frames": 3}, {"sigma": 0.5}, {"beta": 0.0},
        {"space": "source"}, {"guidance": False}, {"seed": 1},
    ],
    "mixture_of_block": [{"tau": 0.5}, {"max_density": None}, {"select": "threshold", "keep": 3}],
    "neighborhood": [{"radius": 3.0}, {"shape": "disc", "radius": 3.0, "stride": 2}],
    "reference": [{"group": 3}, {"rank": 4}, {"seed": 1}, {"origin": "rows", "rank": "full"}],
    "sliding_window": [{"cache_steps": 3}, {"override": "both"}, {"offload": True}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), [(n, s) for n, each in WITHOUT_EFFECT.items() for s in each], ids=str)
def test_a_setting_without_effect_is_refused_with_what_it_belongs_to(name, settings):
    with pytest.raises(UsageError, match=r"belongs to|use shape='box'") as refusal:
        registry.build(name, settings)
    assert any(f"{name}.{setting}" in str(refusal.value) for setting in settings)


def test_text_becomes_typed_settings():
    assert registry.build("radial", {"block_size": "64", "sink": "false", "decay_factor": "1"}) == Radial(
        block_size=64, sink=False, decay_factor=1.0
    )
    assert registry.build("radial", {"block_size": "auto", "near": "HALF"}) == Radial(near="half")
    assert registry.build("neighborhood", {"size": "allx7x0.5", "stride": "1x2x2", "causal": "true"}) == Neighborhood(
        size=("all", 7, 0.5), stride=(1, 2, 2), causal=True
    )
    assert registry.build("neighborhood", {"size": "5", "base_size": "none"}) == Neighborhood(size=5)
    assert registry.build("neighborhood", {"size": ["all", 5, 5], "stride": 2}) == Neighborhood(
        size=("all", 5, 5), stride=2
    )


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("radail", {}, "did you mean 'radial'"),
        ("radial", {"blocksize": "64"}, "did you mean 'block_size'"),
        ("radial", {"block_size": "64.5"}, "block_size"),
        ("radial", {"sink": "maybe"}, "true or false"),
        ("radial", {"sink": 1}, "true or false"),
        ("radial", {"decay_factor": "much"}, "a number"),
        ("neighborhood", {"size": "7x7x7x7"}, "size"),
        ("neighborhood", {"shape": "cube"}, "box"),
        ("neighborhood", {"base_size": "4x4"}, "base_size"),
    ],
)
def test_wrong_text_is_refused_with_the_choices(name, settings, words):
    with pytest.raises(UsageError, match=words):
        registry.build(name, settings)


@pytest.mark.parametrize(
    "name, key, words",
    [
        (
            "neighborhood",
            "size",
            "a number, all, none, or 2 of these joined by x (3x5), or 3 of these joined by x (3x5x7)",
        ),
        ("neighborhood", "causal", "true or false, or 2 of these joined by x (truexfalse)"),
        ("radial", "block_size", "a whole number, auto"),
        ("agent", "lattice", "3 values, each a whole number, joined by x (3x5x7)"),
        ("mixture_of_block", "keep", "a number"),
        ("reference", "form", "auto, append, residual"),
    ],
)
def test_messages_name_the_value_and_the_allowed_ones_in_words(name, key, words):
    with pytest.raises(UsageError) as told:
        registry.build(name, {key: "wide"})
    assert str(told.value).startswith(f"{name}.{key}: got 'wide', allowed: {words}")


def test_the_listing_describes_every_setting():
    listed = {info.name: info for info in registry.methods()}
    assert set(listed) >= {"neighborhood", "radial"}
    for info in listed.values():
        assert info.summary and info.source and info.roles
        assert all(field.help for field in info.fields)
        assert registry.method_class(info.name).name == info.name
    block = next(field for field in listed["radial"].fields if field.name == "block_size")
    assert (block.type, block.default) == ("int | auto", "auto")


def test_every_listed_method_is_a_frozen_hashable_dataclass():
    for name in registry.names():
        method = registry.build(name)
        assert hash(method) == hash(registry.build(name)) and method == registry.build(name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.roles = ()
        assert method.describe() == f"{name}()"
        assert registry.build(name, method.settings()) == method


def test_names_cannot_be_taken_twice():
    @dataclasses.dataclass(frozen=True)
    class Other(Method):
        pass

    with pytest.raises(UsageError, match="already belongs"):
        registry.register("radial")(Other)
    with pytest.raises(UsageError, match="frozen dataclass"):
        registry.register("new")(int)


def test_a_cache_builds_once():
    cache, calls = PatchCache(), []
    assert cache.get("key", lambda: calls.append(1) or 7) == 7
    assert cache.get("key", lambda: calls.append(1) or 8) == 7
    assert len(calls) == len(cache) == 1
    cache.clear()
    assert len(cache) == 0


def test_only_recent_values_are_kept_where_prompts_differ():
    cache = PatchCache()
    assert [cache.recent(number, lambda number=number: number, most=2) for number in (1, 2, 1, 3)] == [1, 2, 1, 3]
    assert cache.recent(1, lambda: "kept") == 1
    assert cache.recent(2, lambda: "built again") == "built again"
    cache.clear()
    assert cache.recent(1, lambda: "empty") == "empty"


def test_tensors_are_told_apart_by_content_and_version():
    cache = PatchCache()
    mask = torch.ones(2, 3, dtype=torch.bool)
    key = cache.of_tensor(mask)
    assert cache.of_tensor(mask) == key == cache.of_tensor(mask.clone())
    mask[0, 0] = False
    assert cache.of_tensor(mask) != key
    assert cache.of_tensor(torch.ones(3, 2, dtype=torch.bool)) != key
    for _ in range(1000):
        cache.of_tensor(mask.clone())
    assert len(cache._seen) <= 256


def test_sites_and_densities_speak_plainly():
    site = Site.of_layout(TokenLayout.of_grid(2, 3, 4, text=5), heads=3)
    assert (site.role, site.heads, site.key_layout) == ("joint", 3, site.layout)
    assert str(Density(0.25, 0.3)) == "25.0% of pairs wanted, 30.0% executed"
    assert "dense" in str(Density(1.0, 1.0, dense=True))
    with pytest.raises(UnsupportedError, match="cross attention"):
        Radial().require(Site("a.b", 0, 1, "cross", 1, site.layout, site.layout))


def test_a_setting_may_not_hide_what_every_method_has():
    @dataclasses.dataclass(frozen=True)
    class Hiding(Method):
        """Has a setting named like a question that reports ask."""

        shares: float = 0.5

    with pytest.raises(UsageError, match="shares hide"):
        registry.register("hiding")(Hiding)
    assert "hiding" not in registry.names()
