"""Schedule: every form, every refusal, resolution against counts."""

from __future__ import annotations

import pytest

from genkit.errors import UsageError
from genkit.patching.schedule import Schedule, parse_spans, resolve


@pytest.mark.parametrize(
    ("value", "count", "covered"),
    [
        (None, 4, {0, 1, 2, 3}),
        ("", 4, set()),
        ([], 4, set()),
        (2, 4, {2}),
        (-1, 4, {3}),
        ("-1", 4, {3}),
        ("-2", 4, {2}),
        ("1:", 4, {1, 2, 3}),
        (":", 4, {0, 1, 2, 3}),
        (":-1", 4, {0, 1, 2}),
        ("10:-2", 20, set(range(10, 18))),
        ("-3:-1", 4, {1, 2}),
        ("0:2, 3, -1:", 6, {0, 1, 3, 5}),
        (slice(1, None), 4, {1, 2, 3}),
        (slice(None, -1), 4, {0, 1, 2}),
        (range(1, 3), 4, {1, 2}),
        ([0, "2:", slice(1, 2)], 4, {0, 1, 2, 3}),
        ((1, -1), 4, {1, 3}),
        ("2:2", 4, set()),
    ],
)
def test_forms(value, count, covered):
    assert resolve("steps", parse_spans("steps", value), count) == covered


@pytest.mark.parametrize("value", [True, [True], 1.5, "a", "1:2:3", slice(0, 4, 2), range(0, 4, 2), [None], "1-2", {}])
def test_bad_forms(value):
    with pytest.raises(UsageError):
        Schedule(layers=value)


@pytest.mark.parametrize(("value", "count"), [("10:-2", 8), ("10:-2", 11), (4, 4), ("-5:", 4), (":9", 8), ("3:2", 8)])
def test_nothing_is_clipped(value, count):
    with pytest.raises(UsageError, match=f"there are {count} steps"):
        resolve("steps", parse_spans("steps", value), count)


def test_branches():
    assert Schedule(branches="cond").branches == {"cond"}
    assert Schedule(branches="cond, uncond").branches == {"cond", "uncond"}
    assert Schedule(branches=["cond"]).branches == {"cond"}
    assert Schedule(branches=[]).branches == frozenset()
    for bad in (1, [1], [""], True):
        with pytest.raises(UsageError):
            Schedule(branches=bad)


def test_equality_hash_and_text():
    a, b = Schedule(layers="1:", steps="10:-2"), Schedule(steps=slice(10, -2), layers=[slice(1, None)])
    assert a == b and hash(a) == hash(b)
    assert Schedule(**a.to_dict()) == a
    assert str(a) == "layers 1:; steps 10:-2"
    assert str(Schedule()) == "everywhere" and Schedule().everything
    assert str(Schedule(steps=[])) == "steps none"
    full = Schedule("0:2,-1", ":-2", ["cond"], 3)
    assert Schedule(**full.to_dict()) == full


@pytest.mark.parametrize(
    ("a", "b", "disjoint"),
    [
        ({"steps": ":10"}, {"steps": "10:-2"}, True),
        ({"steps": ":-2"}, {"steps": "-2:"}, True),
        ({"steps": ":11"}, {"steps": "10:"}, False),
        ({"steps": ":-1"}, {"steps": "10:"}, False),
        ({"steps": "0:5,10:15"}, {"steps": "5:10"}, True),
        ({"steps": ""}, {}, True),
        ({}, {}, False),
        ({"branches": "cond"}, {"branches": "uncond"}, True),
        ({"branches": "cond"}, {}, False),
        ({"heads": "0"}, {"heads": "1"}, False),
    ],
)
def test_disjoint(a, b, disjoint):
    assert Schedule(**a).disjoint(Schedule(**b)) is disjoint
    assert Schedule(**b).disjoint(Schedule(**a)) is disjoint
