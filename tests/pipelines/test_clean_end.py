"""Samplers made by name end at the clean picture, whatever noise level their own last step would stop at."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch

from genkit.pipelines.clean_end import ends_clean
from genkit.pipelines.schedulers import BETAS, FLOWS, Sampler, _fitting

#: Those of Diffusers whose last level of a flow is the one before, once more.
STOPPING = ("DEISMultistep", "SASolver")
#: As a Wan folder has it; other samplers keep its settings beside their own.
WAN = dict(
    diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).config
)


def made(name, **written):
    kind = getattr(diffusers, f"{name}Scheduler")
    changes = _fitting(inspect.signature(kind.__init__).parameters, WAN, True, None) | written
    return Sampler(f"{name}Scheduler", changes).of(WAN)


def sampled(scheduler, steps, clean, **how):
    """What comes out where the model knows the clean picture: x = (1 - s) clean + s noise, v = noise - clean."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    scheduler.set_timesteps(steps)
    sample = torch.randn(clean.shape, generator=generator)
    for number, timestep in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[number])
        answer = scheduler.step((sample - clean) / level, timestep, sample, **how)
        sample = answer[0] if how.get("return_dict") is False else answer.prev_sample
    return sample


CLEAN = torch.linspace(-0.9, 0.9, 48).view(1, 3, 1, 4, 4)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("name", [each for each in FLOWS if each != "FlowMatchHeunDiscrete"])
def test_every_sampler_of_flows_ends_at_the_clean_picture(name, steps):
    torch.testing.assert_close(sampled(made(name), steps, CLEAN), CLEAN, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", STOPPING)
def test_only_the_last_step_differs_from_the_stock_sampler(name):
    stock = getattr(diffusers, f"{name}Scheduler").from_config(made(name).config)
    stock.set_timesteps(8)
    mended = made(name)
    mended.set_timesteps(8)
    assert torch.equal(stock.timesteps, mended.timesteps) and torch.equal(stock.sigmas[:-1], mended.sigmas[:-1])
    assert stock.sigmas[-1] == stock.sigmas[-2] > 0 and mended.sigmas[-1] == 0  # what is mended is there
    samples = [torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1))] * 2
    for number, timestep in enumerate(stock.timesteps):
        velocity, before = samples[0] * 0.3 + number, samples[0]
        generators = [torch.Generator().manual_seed(number) for _ in range(2)]
        more = [{"generator": each} if name == "SASolver" else {} for each in generators]
        samples = [
            each.step(velocity, timestep, sample, **told, return_dict=False)[0]
            for each, sample, told in zip((stock, mended), samples, more, strict=True)
        ]
        if number < 7:
            assert torch.equal(*samples), number
    torch.testing.assert_close(samples[1], before - mended.sigmas[7] * velocity)
    assert mended.step_index == 8 and not torch.allclose(*samples, atol=0.1)


@pytest.mark.parametrize("name", STOPPING)
def test_it_is_the_stock_sampler_to_everybody_else(name, tmp_path):
    kind = getattr(diffusers, f"{name}Scheduler")
    scheduler = made(name, thresholding=True)
    assert isinstance(scheduler, kind) and type(scheduler).__name__ == kind.__name__
    scheduler.save_pretrained(tmp_path)
    assert type(kind.from_pretrained(tmp_path)) is kind and kind.from_pretrained(tmp_path).config.flow_shift == 3.0
    again = copy.deepcopy(scheduler)
    wanted = sampled(scheduler, 4, 3 * CLEAN)
    assert torch.equal(sampled(again, 4, 3 * CLEAN, return_dict=False), wanted)
    assert wanted.abs().max() <= 1  # its other settings hold in the last step too: 2.7 without


@pytest.mark.parametrize("name", STOPPING)
def test_a_run_can_begin_in_the_middle(name):
    scheduler = made(name)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(7)
    sample = torch.ones(1, 3, 1, 4, 4)
    (answer,) = scheduler.step(sample, scheduler.timesteps[7], sample, return_dict=False)
    torch.testing.assert_close(answer, sample - scheduler.sigmas[7] * sample)


def test_samplers_that_end_by_themselves_or_by_a_setting_stay_as_they_are():
    for name in FLOWS:
        assert (type(made(name)) is getattr(diffusers, f"{name}Scheduler")) == (name not in STOPPING), name
    assert made("UniPCMultistep", final_sigmas_type="sigma_min").config.final_sigmas_type == "sigma_min"
    kinds = [getattr(diffusers, f"{name}Scheduler") for name in BETAS]
    for kind in [kind for kind in kinds if not hasattr(kind, "_backends")]:  # some need packages that are not here
        scheduler = kind()
        assert ends_clean(scheduler) is scheduler
