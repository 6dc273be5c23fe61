"""Values of settings: what is a number, a share or a flag, and what a refusal says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from genkit.attention import registry
from genkit.attention.cache import PatchCache
from genkit.attention.method import Method, check_amount, check_file, check_flag, check_number, is_number
from genkit.errors import UsageError


def test_numbers_within_bounds():
    for value in (0, 1, 0.5):
        check_number("m", "x", value, 0, 1)
    check_number("m", "x", 7, 1)
    assert is_number(2) and not any(is_number(value) for value in (True, "2", None, math.nan, math.inf))
    for value, bounds, allowed in (
        (True, (0, 1), "a number from 0 to 1"), ("1", (0, 1), "a number from 0 to 1"), (1.5, (0, 1), "from 0 to 1"),
        (math.nan, (0,), "a number >= 0"), (math.inf, (0,), "a number >= 0"), (-1, (0,), "a number >= 0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=rf"m\.x: got .*, allowed: .*{allowed}"):
            check_number("m", "x", value, *bounds)
    with pytest.raises(UsageError, match="a number > 0 and <= 1"):
        check_number("m", "x", 0, 0, 1, above=True)
    with pytest.raises(UsageError, match="a number > 0$"):
        check_number("m", "x", 0, 0, above=True)


def test_amounts_are_whole_numbers_or_shares():
    for value, low in ((1, 1), (12, 1), (0.2, 1), (1.0, 1), (0, 0), (0.0, 0)):
        check_amount("m", "keep", value, low)
    for value, low in ((0, 1), (0.0, 1), (1.5, 1), (-1, 0), (True, 1), ("2", 1), (None, 0), (math.nan, 0)):
        with pytest.raises(UsageError, match=rf"m\.keep: got .* a whole number >= {low}, or a share from 0 to 1"):
            check_amount("m", "keep", value, low)


def test_flags_are_no_numbers():
    check_flag("m", "on", False)
    with pytest.raises(UsageError, match="m.on: got 1, allowed: true or false"):
        check_flag("m", "on", 1)


FILES = ("a.safetensors", Path("a.safetensors"), None)
WEIGHTED = [
    name
    for name in registry.names()
    if any(field.name == "weights" for field in dataclasses.fields(registry.method_class(name)))
]
NO_FILES = (3, 0, True, b"a.safetensors", "", "  ", ["a.safetensors"], {}, 0.5)


@pytest.mark.parametrize("value", NO_FILES, ids=repr)
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_weights_of_every_method_are_a_path(name, value):
    with pytest.raises(UsageError, match=rf"{name}\.weights: got .*allowed: the path of a \.safetensors file"):
        registry.method_class(name)(weights=value)


def test_paths_are_texts_or_paths():
    assert [check_file("it", "weights", value) for value in FILES] == [None] * 3


def test_a_method_of_another_package_is_checked_when_it_is_made_or_reads_its_file():
    @dataclasses.dataclass(frozen=True)
    class Foreign(Method):
        weights: int = 3

    @dataclasses.dataclass(frozen=True)
    class Apart(Foreign):
        def __post_init__(self):
            """It leaves the checks of all methods out."""

    with pytest.raises(UsageError, match=r"\.weights: got 3, allowed"):
        Foreign()
    method = Apart()
    with pytest.raises(UsageError, match=r"\.weights: got 3, allowed"):
        method.ready(PatchCache())
