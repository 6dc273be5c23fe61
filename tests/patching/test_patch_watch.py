"""What attention costs, counted for patched and unpatched models alike, without changing what they compute."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.patching import Watch

SPARSE = genkit.MixtureOfBlock(box=(1, 2, 2), cycle=(0, 0, 1), keep=1)


def _dense(case) -> float:
    """Operations of dense attention from the calls that torch itself sees."""
    found = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, *rest, **more):
        rows, heads, asked, width = query.shape
        found.append(4 * rows * heads * asked * key.shape[2] * width)
        return original(query, key, value, *rest, **more)

    torch.nn.functional.scaled_dot_product_attention = spy
    try:
        case.run()
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    return sum(found)


@pytest.mark.parametrize("name", ["wan", "flux", "unet", "ltx2"])
def test_an_unpatched_model_is_counted_and_unchanged(name):
    case = tiny.build(name)
    before, wanted = case.run(), _dense(case)
    hooks = dict(case.model._forward_pre_hooks)
    with Watch(case.model) as watch:
        assert torch.equal(case.run(), before)
        cost = watch.cost()
        assert cost.calls == case.calls and cost.dense == wanted == cost.computed == cost.executed
        assert cost.seconds > 0 and not watch.silent and cost.density == (1, 1)
        watch.clear()
        assert watch.cost().calls == watch.cost().dense == 0
    assert dict(case.model._forward_pre_hooks) == hooks and torch.equal(case.run(), before)


def test_a_patch_inside_a_watch_counts_what_its_method_leaves():
    case = tiny.build("wan")
    with Watch(case.model) as watch:
        with genkit.patch(case.model, SPARSE, schedule=genkit.Schedule(layers="1:")) as patch:
            case.run()
            report = patch.report()
        cost, cross = watch.cost(("self",)), watch.cost(("cross",))
        assert cost.executed == pytest.approx(report.work * cost.dense) and cost.executed < cost.dense
        assert cost.computed == pytest.approx(
            cost.dense * (1 - (1 - report.density.computed) * report.ran / (report.ran + 1))
        )
        assert cross.executed == cross.dense > 0
        watch.clear()
        case.run()
        assert watch.cost(("self",)).executed == watch.cost(("self",)).dense == cost.dense
    assert not case.model._forward_pre_hooks


def test_a_watch_put_on_a_patched_model_may_go_first_or_last():
    case = tiny.build("wan")
    before = case.run()
    patch = genkit.patch(case.model, SPARSE)
    inside = case.run()
    watch = Watch(case.model)
    assert torch.equal(case.run(), inside)
    patch.remove()
    assert torch.equal(case.run(), before) and watch.cost(("self",)).calls > 0
    watch.remove()
    watch.remove()
    patch = genkit.patch(case.model, SPARSE)
    watch = Watch(case.model)
    watch.remove()
    assert torch.equal(case.run(), inside)
    patch.remove()
    assert not case.model._forward_pre_hooks and not case.model.blocks[0].attn1._forward_hooks


def test_heads_left_out_count_as_dense():
    case = tiny.build("wan")
    with Watch(case.model) as watch, genkit.patch(case.model, SPARSE, schedule=genkit.Schedule(heads="0")) as patch:
        case.run()
        cost = watch.cost(("self",))
        assert cost.executed == pytest.approx(patch.report().work * cost.dense)
