"""The share of dense attention's work that a report tells: what the schedule leaves dense counts in full."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit

SPARSE = genkit.MixtureOfBlock(box=(1, 2, 2), cycle=(0, 0, 1), keep=1)


def run(name, schedule, method=SPARSE, calls=1, **options):
    case = tiny.build(name)
    with genkit.patch(case.model, method, schedule=genkit.Schedule(**schedule), **options) as patch:
        for call in range(calls):
            case.run(timestep=torch.tensor([900 - 100 * call]))
        return patch.report(), patch.describe()


def test_layers_left_out_count_as_dense():
    whole, _ = run("wan", {})
    left, described = run("wan", {"layers": "1:"})
    layers = len(described.rows)
    assert layers > 1 and left.ran == layers - 1 and whole.density == left.density
    assert whole.work == pytest.approx(whole.density.executed) and whole.work < 0.6
    assert left.work == pytest.approx((1 + (layers - 1) * left.density.executed) / layers)


def test_steps_left_out_count_as_dense_too():
    report, described = run("wan", {"steps": "1:", "layers": "1:"}, calls=4, total_steps=4)
    layers = len(described.rows)
    assert report.work == pytest.approx(1 - 3 / 4 * (layers - 1) / layers * (1 - report.density.executed))


def test_heads_left_out_count_as_dense_too():
    report, described = run("wan", {"heads": "0"})
    assert report.work == pytest.approx(1 - (1 - report.density.executed) / described.rows[0].heads)


def test_levels_of_a_unet_weigh_by_their_pairs():
    """A patch on the first layer alone saves what that layer has: its tokens squared of all layers' squares."""
    case = tiny.build("unet")
    with genkit.patch(case.model, SPARSE) as patch:
        case.run()
        rows = [row for row in patch.describe().rows if row.method]
        squares = [row.tokens**2 * row.heads for row in rows]
        executed = [row.density.executed for row in rows]
        whole = patch.report().work
    assert len(set(squares)) > 1
    assert whole == pytest.approx(sum(s * e for s, e in zip(squares, executed, strict=True)) / sum(squares))
    for layer in (0, len(rows) // 2):
        with genkit.patch(case.model, SPARSE, schedule=genkit.Schedule(layers=f"{layer}")) as patch:
            case.run()
            assert patch.report().work == pytest.approx(1 - squares[layer] * (1 - executed[layer]) / sum(squares))


def test_declined_calls_are_dense_work_and_unknown_densities_give_no_number():
    declined, _ = run("wan", {}, genkit.Agent(cell=(1, 1, 1)))
    assert declined.ran == 0 and sum(declined.declined.values()) and declined.work == 1
    case = tiny.build("unet")
    with genkit.patch(case.model, genkit.Agent(agents="merge")) as patch:
        assert patch.report().work is None
        case.run()
        assert patch.report().ran and patch.report().work is None
