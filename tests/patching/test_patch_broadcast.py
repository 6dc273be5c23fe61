"""Broadcast attention in a whole run: what is computed when, what it saves, what it equals, what a look tells of it."""

from __future__ import annotations

import pytest
import torch

import genkit
from genkit.attention.broadcast import method as broadcast
from genkit.evaluation.inspection import Look
from genkit.patching import Part, Schedule, Watch

STEPS = 6


@pytest.fixture(scope="module")
def pipe(tiny_wan):
    pipe = genkit.load(str(tiny_wan))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe):
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 16, "guidance_scale": 2.0}
    return pipe(
        "a red circle", num_inference_steps=STEPS, generator=generator, output_type="latent", **size
    ).frames  # fmt: skip


@pytest.fixture
def computed(monkeypatch):
    """How often dense attention was computed by the method."""
    calls, own = [], broadcast.dense_attention

    def note(q, *args):
        calls.append(q.shape)
        return own(q, *args)

    monkeypatch.setattr(broadcast, "dense_attention", note)
    return calls


@pytest.mark.parametrize(
    ("parts", "fresh"),
    [
        ([(2, "1:")], {1, 3, 5}),
        ([(3, "0:")], {0, 3}),
        ([(2, "1:4"), (4, "4:")], {1, 3, 4}),
    ],
)
def test_the_attention_that_is_counted_is_the_attention_that_is_computed(pipe, computed, parts, fresh):
    schedules = [Part(genkit.Broadcast(every=every), Schedule(steps=steps)) for every, steps in parts]
    first = min(int(steps.split(":")[0]) for _, steps in parts)
    for _ in range(2):  # the second run begins anew
        computed.clear()
        with Watch(pipe) as watch, genkit.patch(pipe, schedules) as handle:
            run(pipe)
            cost, report = watch.cost(("self",)), handle.report()
        assert len(computed) == 2 * 2 * len(fresh)  # two layers, two branches of guidance
        assert cost.executed / cost.dense == pytest.approx((first + len(fresh)) / STEPS)
        assert report.work == pytest.approx((first + len(fresh)) / STEPS)
        assert not report.remarks


def test_an_output_that_serves_one_step_is_dense_attention_and_one_that_serves_more_is_near(pipe):
    dense = run(pipe)
    found = []
    for every in (1, 2, 6):
        with genkit.patch(pipe, genkit.Broadcast(every=every)):
            found.append((run(pipe) - dense).norm() / dense.norm())
    assert found[0] < 1e-5 < found[1] < found[2]
    assert torch.equal(run(pipe), dense)


def test_a_look_follows_all_steps_and_begins_anew_where_it_is_asked_to(pipe):
    methods = {"2": genkit.Broadcast(every=2), "6": genkit.Broadcast(every=6)}

    def looked(**options):
        with Look(pipe, methods, distances=False, **options) as look:
            run(pipe)
        site = look.result().sites[0]
        return {
            name: {each.step: (each.methods[name].executed, each.methods[name].error) for each in site.steps}
            for name in methods
        }

    all_steps = looked(steps="0:")
    assert [density for density, _ in all_steps["2"].values()] == [1, 0, 1, 0, 1, 0]
    assert [density for density, _ in all_steps["6"].values()] == [1, 0, 0, 0, 0, 0]
    for values in all_steps.values():
        for density, error in values.values():
            assert (error < 1e-3) == (density == 1)
    some = looked(steps=[3, 5])
    assert {step: some["6"][step] for step in (3, 5)} == {step: all_steps["6"][step] for step in (3, 5)}
    anew = looked(steps="0:", restarts=[0, 3])
    assert [density for density, _ in anew["2"].values()] == [1, 0, 1, 1, 0, 1]
    assert [density for density, _ in anew["6"].values()] == [1, 0, 0, 1, 0, 0]
    assert anew["6"][4][1] < all_steps["6"][4][1]
