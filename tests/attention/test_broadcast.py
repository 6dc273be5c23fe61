"""Broadcast attention gives what dense attention gave at the step that serves, by branch, run and size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_helpers import attention_over, tokens

import genkit
from genkit.attention.broadcast import Broadcast
from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.errors import UsageError
from genkit.layout import TokenLayout

LAYOUTS = [TokenLayout.of_grid(2, 3, 4), TokenLayout.of_grid(2, 3, 4, text=5)]


def served(every, first, step):
    """The step whose output serves a step, when the schedule begins at ``first``."""
    return first + (step - first) // every * every


def inputs(layout, step, branch=""):
    return tokens(layout, seed=100 * step + len(branch), dtype=torch.float64)


def dense(layout, *qkv):
    return attention_over(*qkv, torch.ones(layout.length, layout.length, dtype=torch.bool))


def at(layout, step, branch=None, run=0, **more):
    return dataclasses.replace(Site.of_layout(layout, heads=2, **more), step=step, steps=20, branch=branch, run=run)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["grid", "with text"])
@pytest.mark.parametrize(("every", "first"), [(1, 0), (2, 0), (2, 3), (3, 1), (20, 2)])
def test_every_branch_gets_its_output_of_the_step_that_serves(layout, every, first):
    method, cache = Broadcast(every=every), PatchCache()
    assert method.density(at(layout, None), cache).executed == 1 / every
    computed = 0
    for step in range(first, 12):
        fresh = served(every, first, step) == step
        for branch in ("cond", "uncond"):
            site = at(layout, step, branch)
            out = method.attend(*inputs(layout, step, branch), site, cache)
            right = dense(layout, *inputs(layout, served(every, first, step), branch))
            torch.testing.assert_close(out, right)
            assert method.density(site, cache).executed == fresh
        computed += fresh
    assert method.density(at(layout, None), cache).executed == pytest.approx(computed / (12 - first))
    assert not method.remarks(cache)


def test_branches_that_nobody_names_are_told_by_their_order():
    layout, method, cache = LAYOUTS[0], Broadcast(every=3), PatchCache()
    for step in range(7):
        for branch in ("a", "bb", "ccc"):
            out = method.attend(*inputs(layout, step, branch), at(layout, step), cache)
            torch.testing.assert_close(out, dense(layout, *inputs(layout, served(3, 0, step), branch)))


@pytest.mark.parametrize(
    "after",
    [{"run": 1, "step": 5}, {"run": 0, "step": 3}, {"run": 0, "step": 5, "layout": TokenLayout.of_grid(2, 3, 5)}],
    ids=["another run", "an earlier step", "another size"],
)
def test_what_is_not_of_this_run_or_size_serves_nothing(after):
    method, cache = Broadcast(every=9), PatchCache()
    layout = after.pop("layout", LAYOUTS[0])
    method.attend(*inputs(LAYOUTS[0], 4), at(LAYOUTS[0], 4), cache)
    site = at(layout, **after)
    out = method.attend(*inputs(layout, 7), site, cache)
    torch.testing.assert_close(out, dense(layout, *inputs(layout, 7)))
    later = dataclasses.replace(site, step=site.step + 1)
    again = method.attend(*inputs(layout, 8), later, cache)
    torch.testing.assert_close(again, out)


def test_gradients_are_those_of_dense_attention_and_nothing_is_kept_of_them():
    layout, method, cache = LAYOUTS[1], Broadcast(every=4), PatchCache()
    for step in range(2):
        given = [x.requires_grad_() for x in inputs(layout, step)]
        out = method.attend(*given, at(layout, step), cache)
        mine = torch.autograd.grad(out.sin().sum(), given)
        right = torch.autograd.grad(dense(layout, *given).sin().sum(), given)
        for one, other in zip(mine, right, strict=True):
            torch.testing.assert_close(one, other)
    with torch.no_grad():
        out = method.attend(*inputs(layout, 2), at(layout, 2), cache)
    torch.testing.assert_close(out, dense(layout, *inputs(layout, 2)))


def test_without_a_step_every_call_is_computed_and_told():
    layout, method, cache = LAYOUTS[0], Broadcast(), PatchCache()
    for step in range(3):
        out = method.attend(*inputs(layout, step), at(layout, None), cache)
        torch.testing.assert_close(out, dense(layout, *inputs(layout, step)))
    assert method.density(at(layout, None), cache).executed == 1
    assert "every call was computed" in method.remarks(cache)[0] and not Broadcast(every=1).remarks(cache)


def test_hidden_keys_stay_hidden_and_who_writes_into_an_output_changes_nothing():
    layout, method, cache = LAYOUTS[1], Broadcast(), PatchCache()
    mask = torch.ones(2, layout.length, dtype=torch.bool)
    mask[1, -3:] = False
    q, k, v = inputs(layout, 0)
    right = attention_over(q, k, v, mask[:, None, None])
    for step in range(2):
        out = method.attend(q, k, v, dataclasses.replace(at(layout, step), key_mask=mask), cache)
        torch.testing.assert_close(out, right)
        out.zero_()


def test_two_parts_of_the_heads_keep_their_own():
    layout, method, cache = LAYOUTS[0], Broadcast(), PatchCache()
    for step in range(4):
        whole = dense(layout, *inputs(layout, served(2, 0, step)))
        for first in range(2):
            site = dataclasses.replace(at(layout, step), heads=1, first_head=first, all_heads=2)
            part = [x[:, :, first : first + 1] for x in inputs(layout, step)]
            torch.testing.assert_close(method.attend(*part, site, cache), whole[:, :, first : first + 1])


def test_settings_and_advice():
    assert Broadcast().recommended(20, 6) == {"steps": "4:-2"} and Broadcast().recommended(4, 6) == {}
    assert Broadcast().mask(LAYOUTS[0]).all() and Broadcast().mask_rows(LAYOUTS[0], torch.tensor([1, 2])).shape == (
        2,
        24,
    )
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="broadcast.every"):
            Broadcast(every=wrong)
    assert genkit.Broadcast is Broadcast and Broadcast(every=3).describe() == "broadcast(every=3)"
