"""Which calls a patched layer refuses and which moments a schedule covers, on the smallest inputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from genkit.errors import UsageError
from genkit.patching import Schedule
from genkit.patching.assignment import Assignment
from genkit.patching.loop_check import _check_branches
from genkit.patching.patched_layer import _obstacle
from genkit.patching.schedule import resolve


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
    assert _obstacle((0, 3, 3, 4, heads, None), call(**asked)) == says


def test_ranges_count_from_zero_and_from_the_end():
    assert resolve("steps", Schedule(steps="0:2").steps, 5) == {0, 1}
    assert resolve("steps", Schedule(steps="1:-1").steps, 5) == {1, 2, 3}
    assert resolve("steps", Schedule(steps="-1:").steps, 5) == {4}
    assert resolve("steps", None, 2) == {0, 1}
    with pytest.raises(UsageError, match="there are 5 steps"):
        resolve("steps", Schedule(steps="6:").steps, 5)


def covers(schedule, step, steps=None, branch=None):
    moment = SimpleNamespace(aside=False, branch=branch, step=step, steps=steps)
    return Assignment.covers(SimpleNamespace(schedule=schedule, _steps=None, _total=None), moment)


def test_steps_are_counted_without_a_known_total_unless_they_count_from_the_end():
    open_ended = Schedule(steps="2:4,6:")
    assert [step for step in range(8) if covers(open_ended, step)] == [2, 3, 6, 7]
    assert [step for step in range(8) if covers(Schedule(steps="-2:"), step, steps=8)] == [6, 7]
    assert [step for step in range(3) if covers(Schedule(), step)] == [0, 1, 2]


def test_branches_that_are_not_named_are_left_to_the_model():
    only = Schedule(branches="cond")
    assert covers(only, 0, branch="cond") and not covers(only, 0, branch="uncond") and not covers(only, 0)


def test_a_named_branch_that_never_comes_is_refused_as_soon_as_that_is_known():
    only = Schedule(branches="cond")

    def check(branch, step=0, announced=()):
        _check_branches(only, SimpleNamespace(branch=branch, step=step), set(announced))

    check("cond")
    check("uncond")  # in the first step the other branch may still come
    check("uncond", step=1, announced=("cond", "uncond"))
    for branch, step in (("uncond", 1), ("cond_uncond", 0), (None, 0)):
        with pytest.raises(UsageError, match="cond"):
            check(branch, step)
