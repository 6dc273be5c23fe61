"""What the schema machine accepts, refuses and says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from genkit.errors import ArtifactError, UsageError
from genkit.schema import Rule, number, open_keys, read


@dataclass(frozen=True)
class Inner:
    layers: tuple[int, ...] = ()
    kind: Literal["flow", "epsilon"] = "flow"


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int | None = field(default=None, metadata={"rule": Rule(low=1, high=100)})
    scale: Annotated[float, Rule(low=0)] = 1.0
    inner: Inner = Inner()
    more: dict[str, list[int]] = field(default_factory=dict)


@open_keys
@dataclass(frozen=True)
class Foreign:
    size: int = 0


def test_values_of_the_right_type_become_objects():
    values = {"name": "a", "steps": 4.0, "scale": 2, "inner": {"layers": [1, 2], "kind": "epsilon"}, "more": {"x": [1]}}
    found = read(Outer, values, "file")
    assert found == Outer("a", 4, 2.0, Inner((1, 2), "epsilon"), {"x": [1]})
    assert type(found.steps) is int and type(found.scale) is float
    assert read(Outer, found, "file") is found
    assert read(Outer, {"name": "a", "steps": None}, "file") == Outer("a")
    assert read(Foreign, {"size": 3, "else": object}, "file") == Foreign(3)
    assert read(int | str, "x", "it") == "x" and read(bool | int, 3, "it") == 3 and read(Any, None, "it") is None
    assert read(int, 10**400, "it") == 10**400


WRONG = [
    (Outer, {"name": "a", "steps": 0}, "file, steps: got 0, allowed: a whole number from 1 to 100"),
    (Outer, {"name": "a", "steps": 2.5}, "file, steps: got 2.5, allowed: a whole number from 1 to 100"),
    (Outer, {"name": "a", "steps": True}, "file, steps: got True, allowed: a whole number from 1 to 100"),
    (Outer, {"name": "a", "steps": "3"}, "file, steps: got '3', allowed: a whole number from 1 to 100"),
    (Outer, {"name": "a", "scale": float("nan")}, "file, scale: got nan, allowed: a number >= 0"),
    (Outer, {"name": "a", "scale": float("inf")}, "file, scale: got inf, allowed: a number >= 0"),
    (Outer, {"name": 3}, "file, name: got 3, allowed: a text"),
    (Outer, {"name": "a", "inner": 5}, "file, inner: got 5, allowed: names and values (layers, kind)"),
    (Outer, {"name": "a", "inner": {"layers": [1, "2"]}}, "file, inner.layers[1]: got '2', allowed: a whole number"),
    (Outer, {"name": "a", "inner": {"kind": "flew"}}, "'flew', allowed: flow, epsilon; did you mean 'flow'?"),
    (Outer, {"name": "a", "more": {"x": [1, None]}}, "file, more.x[1]: got None, allowed: a whole number"),
    (Outer, {"name": "a", "stepz": 1}, "file, key: got 'stepz', allowed: name, steps, scale, inner, more; did you"),
    (Outer, {"steps": 1}, "a value for 'name' among them"),
    (Outer, [1], "file: got [1], allowed: names and values"),
    (float, 10**400, "allowed: a number"),
    (int, float("inf"), "file: got inf, allowed: a whole number"),
    (bool, 1, "file: got 1, allowed: true or false"),
    (int | str, None, "file: got None, allowed: a whole number or a text"),
    (Literal[1], True, "file: got True, allowed: 1"),
    (list[int], "12", "file: got '12', allowed: a list"),
    (Annotated[list[int], Rule(most=2)], [1, 2, 3], "allowed: a list of at most 2 items"),
    (Annotated[str, Rule(choices=("a", "b"))], "c", "file: got 'c', allowed: a, b"),
]


@pytest.mark.parametrize("hint, value, message", WRONG, ids=[each[2][:50] for each in WRONG])
def test_wrong_values_are_told_with_place_value_and_what_is_allowed(hint, value, message):
    with pytest.raises(ArtifactError) as told:
        read(hint, value, "file", ArtifactError)
    assert message in str(told.value)


def test_numbers_as_text():
    assert number(" 12 ", int, "--steps") == 12 and number("1e3", float, "--scale") == 1000.0
    for text, kind in (("1.5", int), ("x", int), ("nan", float), ("1e999", float), ("1_0", int), ("9" * 5000, int)):
        with pytest.raises(UsageError, match="--it: got .*, allowed: a"):
            number(text, kind, "--it")


@pytest.mark.parametrize(
    "hint", [int | float, float | int, str | bool | int | float | None, list[int | float] | int | float]
)
@pytest.mark.parametrize("value", [2, 2.0, 0.5])
def test_a_number_keeps_its_type_where_several_are_allowed(hint, value):
    assert type(read(hint, value, "x")) is type(value)
    assert type(read(dict[str, hint], {"a": value}, "x")["a"]) is type(value)
