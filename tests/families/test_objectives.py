"""What a denoiser is trained to answer: identities of flow, epsilon and v, and the one loss."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.families.facts import Objective as Told
from genkit.families.lookup import records
from genkit.families.training.objectives import (
    Flow,
    Table,
    denoising_loss,
    draw_levels,
    draw_sigma,
    objective_of,
    shifted,
)


def table(prediction: str, **more) -> Table:
    from diffusers import DDIMScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return objective_of(Told(None, "index"), DDIMScheduler(prediction_type=prediction, **betas, **more))


OBJECTIVES = {"flow": Flow(), "epsilon": table("epsilon"), "v": table("v_prediction")}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 3, 4), (5, 2, 3, 4, 2)])
def test_the_right_answer_stands_for_the_clean_latents(name, shape):
    objective = OBJECTIVES[name]
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    level = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    noisy, target = objective.noised(clean, noise, level)
    assert torch.allclose(objective.clean(noisy, target, level), clean, atol=1e-9)
    assert not torch.allclose(objective.clean(noisy, target + 0.1, level)[1:], clean[1:], atol=1e-3)


def test_flow_gives_the_worked_example():
    level = torch.tensor([0.7])
    noisy, target = Flow().noised(torch.tensor([[0.8]]), torch.tensor([[-0.4]]), level)
    assert noisy.item() == pytest.approx(-0.04) and target.item() == pytest.approx(-1.2)
    assert Flow().timesteps(level).item() == pytest.approx(700) and Flow(1.0).timesteps(level).item() == pytest.approx(
        0.7
    )


@pytest.mark.parametrize("name", ["epsilon", "v"])
def test_tables_agree_with_diffusers(name):
    from diffusers import DDIMScheduler

    objective = OBJECTIVES[name]
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    clean, noise = torch.randn(2, 4, 4, 4, 4)
    level = torch.tensor([0.0005, 0.3, 0.7, 1.0])
    steps = objective.timesteps(level)
    assert steps.tolist() == [0, 300, 700, 999]
    noisy, target = objective.noised(clean, noise, level)
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, steps), atol=1e-6)
    wanted = noise if name == "epsilon" else scheduler.get_velocity(clean, noise, steps)
    assert torch.allclose(target, wanted, atol=1e-6)
    published = [0.99914998, 0.89422315, 0.27633247, 0.00466010]
    assert objective.kept[[0, 100, 500, 999]].tolist() == pytest.approx(published, abs=1e-6)


def test_without_terminal_signal_v_still_stands_for_the_latents():
    objective = table("v_prediction", rescale_betas_zero_snr=True)
    clean, noise = torch.randn(2, 3, 4, 4, 4)
    level = torch.ones(3)
    noisy, target = objective.noised(clean, noise, level)
    assert torch.equal(noisy, noise) and torch.allclose(target, -clean)
    assert torch.allclose(objective.clean(noisy, target, level), clean)


def test_shifts_have_the_published_values_and_levels_follow_them():
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert shifted(levels, 3.0).tolist() == pytest.approx([0.25, 0.5, 0.75, 0.9, 0.964286], abs=1e-6)
    assert shifted(levels, 12.0).tolist() == pytest.approx([0.571429, 0.8, 0.923077, 0.972973, 0.990826], abs=1e-6)
    assert torch.equal(shifted(levels, 1.0), levels)
    draws = draw_sigma(100_000, 3.0, torch.Generator().manual_seed(0))
    assert (draws >= 0.9).float().mean().item() == pytest.approx(0.136, abs=0.004)
    even = draw_levels(100_000, 3.0, torch.Generator().manual_seed(0), even_share=1.0)
    assert (even >= 0.9).float().mean().item() == pytest.approx(0.1, abs=0.004)


def test_the_loss_weighs_levels_and_masks_and_is_taken_in_float32():
    target = torch.zeros(4, 2, 3)
    answer = torch.full((4, 2, 3), 2.0, dtype=torch.bfloat16)
    loss, error = denoising_loss(answer, target, torch.tensor([0.0, 0.1, 0.5, 1.0]), low_weight=0.5)
    assert error.tolist() == [4.0] * 4 and loss.item() == 4 * (0 + 0.5 + 1 + 1) / 4 and loss.dtype == torch.float32
    mask = torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 3)
    answer = torch.tensor([9.0, 2.0, 1.0]).expand(4, 2, 3)
    loss, error = denoising_loss(answer, target, torch.full((4,), 0.5), mask=mask)
    assert error.tolist() == [2.5] * 4 and loss.item() == 2.5  # a mean inside the mask, whatever lies outside
    close = torch.full((1, 1), 1.0 + 2**-9, dtype=torch.float32)
    assert denoising_loss(close, torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1))[0].item() == 2.0**-18


def test_every_family_has_an_objective_or_says_so():
    from diffusers import DDPMScheduler

    found = {}
    for family in records():
        if family.facts.objective is not None:
            found[family.name] = objective_of(family.facts.objective, DDPMScheduler())
    assert {type(value) for value in found.values()} == {Flow, Table}
    assert found["Wan"].scale == 1000 and found["Flux"].scale == 1


def test_a_scheduler_without_betas_is_refused_where_they_are_needed():
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(UnsupportedError, match="FlowMatchEulerDiscreteScheduler has no table of betas"):
        objective_of(Told(None, "index"), FlowMatchEulerDiscreteScheduler())


def exact(objective, clean: torch.Tensor, noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The answer that leads from noisy latents to the clean ones: linear in the noise, so its two ends tell it."""
    start, zero = objective.noised(clean, torch.zeros_like(clean), level)
    end, one = objective.noised(clean, torch.ones_like(clean), level)
    return zero + (noisy - start) / (end - start) * (one - zero)


def _schedulers():
    from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    dynamic = {"use_dynamic_shifting": True, "shift_terminal": 0.1}
    return {
        "static": (FlowMatchEulerDiscreteScheduler(shift=3.0), {}),
        "dynamic": (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {"mu": 1.15}),
        "terminal": (FlowMatchEulerDiscreteScheduler(**dynamic), {"mu": 1.15}),
        "unipc": (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0), {}),
        "v": (CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", **betas), {}),
    }


@pytest.mark.parametrize("name", ["static", "dynamic", "terminal", "unipc", "v"])
def test_sampling_with_the_right_answer_ends_at_the_clean_latents(name):
    scheduler, more = _schedulers()[name]
    objective = objective_of(Told(None if name == "v" else "flow", "thousand"), scheduler)
    scheduler.set_timesteps(8, **more)
    clean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    first = float(scheduler.sigmas[0]) if name != "v" else 1.0
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    latents = objective.noised(clean, noise, torch.full((2,), first))[0]
    turned = latents.clone()
    for step, timestep in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[step]) if name != "v" else (float(timestep) + 0.5) / 1000
        answer = exact(objective, clean, latents, torch.full((2,), level))
        latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
    assert (latents - clean).abs().max() < 1e-4
    scheduler.set_timesteps(8, **more)
    for step, timestep in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[step]) if name != "v" else (float(timestep) + 0.5) / 1000
        answer = exact(objective, clean, turned, torch.full((2,), level))
        turned = scheduler.step(-answer, timestep, turned, return_dict=False)[0]
    assert (turned - clean).abs().max() > 1


def test_silence_costs_the_targets_own_power():
    """Nothing said of latents of unit variance costs 1 + mean x0^2; of latents half too small, 1.25."""
    clean, noise = torch.randn(2, 64, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    for scale, cost in ((1.0, 2.0), (0.5, 1.25)):
        target = Flow().noised(scale * clean, noise, torch.full((64,), 0.5))[1]
        assert target.square().mean().item() == pytest.approx(cost, abs=0.03)


def test_the_shifted_table_of_diffusers_is_the_shift():
    from diffusers import FlowMatchEulerDiscreteScheduler

    table = FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps[[0, 250, 500, 750, 999]]
    assert table.tolist() == pytest.approx([1000, 900, 750, 500, 2.994], abs=1e-3)
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.001])
    assert (1000 * shifted(even, 3.0)).tolist() == pytest.approx(table.tolist(), abs=1e-3)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(UsageError, match="prediction_type of the scheduler"):
        table("sample")
