"""AttenST's parts without a model: inversion closes in on the path, lines are exact inverses, statistics are mixed."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.editing.attenst.inversion import invert, line
from genkit.editing.attenst.statistics import mix_statistics
from genkit.errors import UsageError


def _stable_diffusion_table():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def _lines(kind="epsilon", steps=40):
    kept = _stable_diffusion_table()
    times = [index * (1000 // steps) + 1 for index in reversed(range(steps))]
    ends = [*times[1:], 0]
    return [
        line(kind, float(kept[here]), float(kept[there]), here / 1000) for here, there in zip(times, ends, strict=True)
    ]


def _round_trip(again, kind="epsilon", **more):
    torch.manual_seed(0)
    mix = torch.randn(8, 8, dtype=torch.float64) / 8**0.5
    clean = torch.randn(16, 8, dtype=torch.float64)
    lines = _lines(kind)

    def ask(point, index):
        return torch.tanh(point @ mix) + 0.3 * point

    point = invert(clean, lines, ask, again=again, **more)[0]
    for index, each in enumerate(lines):
        point = each.step(point, ask(point, index))
    return float((point - clean).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_asking_again_brings_the_round_trip_closer_every_time(kind):
    errors = [_round_trip(again, kind, average_below=0) for again in (0, 1, 2, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01 and errors[-1] < 1e-4 * errors[0]


def test_an_iteration_that_runs_away_is_not_followed():
    torch.manual_seed(0)
    clean, lines = torch.randn(3, 8, dtype=torch.float64), _lines("v_prediction", 4)
    factor = torch.tensor([[0.0], [-1.0], [-12.0]], dtype=torch.float64)  # the last row's answers overshoot

    def missed(again, guarded):
        points = invert(
            clean, lines, lambda point, index: factor * point, again=again, average_below=0, guarded=guarded
        )
        steps = [each.step(point, factor * point) for each, point in zip(lines, points, strict=False)]
        return torch.stack([(step - goal).norm(dim=1) for step, goal in zip(steps, points[1:], strict=True)]).amax(0)

    published, guarded, plain = missed(5, False), missed(5, True), missed(0, True)
    assert torch.all(guarded <= published * (1 + 1e-9) + 1e-12)
    assert published[2] > 100 * plain[2] and guarded[2] < 2 * plain[2]
    assert torch.all(guarded[:2] <= plain[:2] + 1e-9)  # where it converges the guard is no worse than no correction


@pytest.mark.parametrize("factor", [0.6, 2.0, -0.9, -3.0, -8.0])
def test_no_step_of_the_guarded_iteration_misses_by_more_than_the_published_one(factor):
    torch.manual_seed(0)
    goal, mix = torch.randn(4, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    for each in _lines("v_prediction", 8)[:3]:

        def ask(point, index):
            return factor * torch.tanh(point @ mix / 3)

        found = [invert(goal, [each], ask, again=3, average_below=0, guarded=guarded)[0] for guarded in (False, True)]
        published, guarded = ((each.step(point, ask(point, 0)) - goal).norm(dim=1) for point in found)
        assert torch.all(guarded <= published + 1e-12)


def test_the_mean_of_answers_is_used_below_the_level_only():
    plain, everywhere = _round_trip(5, average_below=0), _round_trip(5, average_below=1)
    assert plain < _round_trip(5, average_below=0.25) < everywhere


@pytest.mark.parametrize(("kind", "here", "there"), [
    ("epsilon", 0.3, 0.5), ("v_prediction", 0.3, 0.5), ("v_prediction", 0.0, 0.1), ("flow", 0.9, 0.8),
])  # fmt: skip
def test_a_step_and_its_way_back_are_inverses(kind, here, there):
    each = line(kind, here, there)
    point, answer = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(each.step(each.back(point, answer), answer), point)


def test_noise_and_velocity_make_the_same_step_of_ddim():
    here, there, noisy, noise = 0.3, 0.5, 0.7, -1.1
    clean = (noisy - math.sqrt(1 - here) * noise) / math.sqrt(here)
    velocity = math.sqrt(here) * noise - math.sqrt(1 - here) * clean
    right = math.sqrt(there) * clean + math.sqrt(1 - there) * noise
    assert line("epsilon", here, there).step(noisy, noise) == pytest.approx(right)
    assert line("v_prediction", here, there).step(noisy, velocity) == pytest.approx(right)


def test_steps_of_noise_cannot_start_where_no_signal_is_left():
    with pytest.raises(UsageError, match="noise alone"):
        line("epsilon", 0.0, 0.1)
    with pytest.raises(UsageError, match="epsilon"):
        line("sample", 0.2, 0.1)


def test_the_published_schedule_has_forty_steps_of_which_ten_average():
    lines = _lines()
    assert len(lines) == 40 and sum(each.level < 0.25 for each in lines) == 10


def test_statistics_go_from_the_content_to_the_style():
    torch.manual_seed(1)
    content, style = torch.randn(1, 4, 16, 16) * 2 + 1, torch.randn(1, 4, 8, 12) * 0.5 - 3
    torch.testing.assert_close(mix_statistics(content, style, 0, epsilon=0), content, atol=2e-6, rtol=0)
    whole = mix_statistics(content, style, 1, epsilon=0)
    torch.testing.assert_close(whole.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(whole.std((2, 3)), style.std((2, 3)))
    mixed = mix_statistics(content, style, 0.6)
    torch.testing.assert_close(mixed.mean((2, 3)), 0.6 * style.mean((2, 3)) + 0.4 * content.mean((2, 3)))
    wanted = 0.6 * style.std((2, 3)) + 0.4 * content.std((2, 3))
    torch.testing.assert_close(mixed.std((2, 3)), wanted, atol=1e-4, rtol=0)
