"""What a slot refuses and covers, on the smallest inputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from genkit.errors import UsageError
from genkit.patching import Schedule
from genkit.patching.schedule import resolve
from genkit.patching.slot import Slot


def call(**more):
    return SimpleNamespace(**{"causal": False, "dropout": 0.0, "grouped": False, **more})


@pytest.mark.parametrize(
    ("heads", "asked", "says"),
    [
        (4, {}, None),
        (2, {"grouped": True}, None),
        (2, {}, "its keys have 2 heads, its queries 4"),
        (4, {"causal": True}, "the model asks for causal attention"),
        (4, {"dropout": 0.5}, "the model asks for attention dropout 0.5"),
    ],
)
def test_calls_that_no_method_may_serve_are_named(heads, asked, says):
    q, k = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, heads, 8)
    assert Slot._obstacle(None, q, k, call(**asked)) == says


def test_ranges_count_from_zero_and_from_the_end():
    assert resolve("steps", Schedule(steps="0:2").steps, 5) == {0, 1}
    assert resolve("steps", Schedule(steps="1:-1").steps, 5) == {1, 2, 3}
    assert resolve("steps", Schedule(steps="-1:").steps, 5) == {4}
    assert resolve("steps", None, 2) == {0, 1}
    with pytest.raises(UsageError, match="there are 5 steps"):
        resolve("steps", Schedule(steps="6:").steps, 5)
