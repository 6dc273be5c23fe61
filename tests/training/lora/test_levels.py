"""Noise levels are drawn as their names say, within bounds without another shape, and weighed as the formulas say."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UsageError
from genkit.families.facts import EPSILON, VELOCITY
from genkit.families.training.objectives import Flow, Table
from genkit.training.lora.levels import Levels, weight_of


def share(levels: Levels, low: float, count: int = 40_000) -> float:
    return float((levels.draw(count, torch.Generator().manual_seed(0)) >= low).float().mean())


@pytest.mark.parametrize(
    ("sampling", "shift", "low", "expected"),
    [
        ("uniform", 1, 0.875, 0.125), ("uniform", 3, 0.875, 0.3), ("uniform", 12, 0.9, 0.5714),
        ("logit_normal", 1, 0.875, 0.0258), ("logit_normal", 5, 0.875, 0.3683), ("logit_normal", 12, 0.9, 0.6132),
    ],
)  # fmt: skip
def test_shares_of_high_levels(sampling, shift, low, expected):
    assert share(Levels(sampling, shift=shift), low) == pytest.approx(expected, abs=0.01)


def test_a_positive_mean_is_more_noise_and_mode_has_its_formula():
    assert share(Levels(mean=0.5), 0.5) > 0.65 > 0.35 > share(Levels(mean=-0.5), 0.5)
    u = torch.rand(4, generator=torch.Generator().manual_seed(3))
    drawn = Levels("mode", scale=1.29).draw(4, torch.Generator().manual_seed(3))
    assert torch.allclose(drawn, 1 - u - 1.29 * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u), atol=1e-6)
    quarter = 1 - torch.tensor(0.25) - 1.29 * (torch.cos(torch.pi / 2 * torch.tensor(0.25)) ** 2 - 1 + 0.25)
    assert float(quarter) == pytest.approx(0.616416, abs=1e-5)


def test_bounds_cut_the_distribution_and_do_not_squeeze_it():
    levels = Levels("uniform", shift=5, low=0.875, high=1)
    drawn = levels.draw(20_000, torch.Generator().manual_seed(0))
    assert float(drawn.min()) >= 0.875 and float(drawn.median()) == pytest.approx(0.95, abs=0.003)
    with pytest.raises(UsageError, match="practically never come"):
        Levels(std=0.01, low=0.99).draw(1, torch.Generator())
    with pytest.raises(UsageError, match="a range within 0 to 1"):
        Levels(low=0.5, high=0.5)


def test_weights_of_flow_levels():
    level = torch.tensor([0.1, 0.25, 0.5])

    def weights(name):
        return weight_of(Flow(), name)(level).tolist()

    assert weights("none") == [1, 1, 1]
    assert weights("sigma_sqrt") == pytest.approx([100, 16, 4])
    assert weights("cosmap") == pytest.approx([0.776366, 1.018592, 1.273239], abs=1e-5)
    even = weight_of(Flow(), "bell")(torch.linspace(0, 1, 100_001))
    assert float(even.mean()) == pytest.approx(1, abs=1e-4) and float(even[0]) == pytest.approx(0, abs=1e-6)
    assert float(even[50_000]) == pytest.approx(1.58, abs=0.02)
    for wrong, match in ((("none", 5.0), "snr_gamma"), (("cosmos", None), "did you mean 'cosmap'")):
        with pytest.raises(UsageError, match=match):
            weight_of(Flow(), *wrong)


def test_min_snr_weights():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0).float()
    level = torch.tensor([0.0005, 0.1005, 0.5005, 0.9995])
    epsilon, velocity = (weight_of(Table(kept, kind), gamma=5.0)(level) for kind in (EPSILON, VELOCITY))
    assert epsilon.tolist() == pytest.approx([0.004254, 0.591446, 1, 1], abs=1e-5)
    assert velocity.tolist() == pytest.approx([0.004250, 0.528884, 0.276332, 0.004660], abs=1e-5)
    zero = torch.cat([kept[:-1], torch.zeros(1)])
    assert weight_of(Table(zero, EPSILON), gamma=5.0)(torch.tensor([0.9995])).tolist() == [1]
    assert weight_of(Table(zero, VELOCITY), gamma=5.0)(torch.tensor([0.9995])).tolist() == [0]
    with pytest.raises(UsageError, match="take snr_gamma"):
        weight_of(Table(kept, EPSILON), "bell")
