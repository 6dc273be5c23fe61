"""Training calls every family's denoiser with the arguments its stock pipeline hands in: equal tensors and dtypes."""

from __future__ import annotations

import pytest
import torch
from parity import CAPTIONS, assert_same, level_of, rebuilt, spied
from tiny_flux import build_tiny_flux
from tiny_sd import build_tiny_sd
from tiny_wan import build_tiny_wan

from genkit.families.training.base import AUDIO, IMAGE, VIDEO
from genkit.families.training.lookup import training_of

PROMPTS = list(CAPTIONS)
DTYPES = (torch.float32, torch.bfloat16)


def _latents(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(build_tiny_wan(tmp_path_factory.mktemp("wan")))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(build_tiny_flux(tmp_path_factory.mktemp("flux"), guidance_embeds=True))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(build_tiny_sd(tmp_path_factory.mktemp("sd")))


def _flow_scheduler(**changes):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wan(wan, dtype):
    from diffusers import WanPipeline

    pipeline = WanPipeline(**{**wan.components, "scheduler": _flow_scheduler(shift=3.0)}).to(dtype)
    noisy = _latents(4, 2, 4, 6)
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=5, guidance_scale=1.0,
        max_sequence_length=16,
    )  # fmt: skip
    training = training_of(pipeline)
    found, call = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16)
    assert_same(found, seen)
    assert training.answers((noisy,), call)[VIDEO] is noisy
    assert 0 < float(call.level[0]) < 1 and found["timestep"].dtype == torch.float32


def test_wans_own_scheduler_tells_whole_timesteps_and_training_exact_ones(wan):
    wan.to(torch.float32)
    noisy = _latents(4, 2, 4, 6)
    seen = spied(
        wan, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=5, guidance_scale=1.0,
        max_sequence_length=16,
    )  # fmt: skip
    found, _ = rebuilt(wan, "transformer", training_of(wan), {VIDEO: noisy}, level_of(wan, 1), 16)
    assert seen["timestep"].dtype == torch.int64
    assert (found.pop("timestep") - seen.pop("timestep")).abs().max() < 1
    assert_same(found, seen)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flux(flux, dtype):
    pipeline = flux.to(dtype)
    noisy = _latents(4, 8, 12).to(dtype).float()
    packed = pipeline._pack_latents(noisy, 2, 4, 8, 12)
    seen = spied(
        pipeline, "transformer", 1, packed, prompt=PROMPTS, height=16, width=24, guidance_scale=3.5,
        max_sequence_length=16,
    )  # fmt: skip
    training = training_of(pipeline)
    noisy = {IMAGE: noisy}
    found, call = rebuilt(pipeline, "transformer", training, noisy, level_of(pipeline, 1), 16, guidance=3.5)
    assert_same(found, seen)
    assert torch.equal(training.answers((packed,), call)[IMAGE], noisy[IMAGE])


def test_flux_without_a_guidance_input_is_told_none(flux):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    model = FluxTransformer2DModel.from_config(flux.transformer.config, guidance_embeds=False)
    pipeline = FluxPipeline(**{**flux.components, "transformer": model})
    found, _ = rebuilt(pipeline, "transformer", training_of(pipeline), {IMAGE: _latents(4, 8, 12)}, 0.5, 16)
    assert found["guidance"] is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion(stable_diffusion, dtype, prediction):
    from diffusers import DDIMScheduler

    pipeline = stable_diffusion.to(dtype)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    noisy = _latents(4, 8, 12).to(dtype).float()
    seen = spied(pipeline, "unet", 1, noisy, prompt=PROMPTS, height=16, width=24, guidance_scale=1.0)
    found, _ = rebuilt(pipeline, "unet", training_of(pipeline), {IMAGE: noisy}, level_of(pipeline, 1), 77)
    assert found["timestep"].dtype == torch.int64
    assert_same(found, seen, scalar_timestep=True)


@pytest.fixture(scope="module")
def toy_av():
    import genkit

    return genkit.load("toy-av")


def test_ltx2(toy_av):
    video, sound = _latents(40, 3, 2, 4), _latents(4, 28, 7)
    seen = spied(
        toy_av, "transformer", 0, prompt=PROMPTS, height=32, width=64, num_frames=9, frame_rate=8.0,
        guidance_scale=1.0, audio_guidance_scale=1.0, stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0,
        audio_modality_scale=1.0, spatio_temporal_guidance_blocks=None, use_cross_timestep=False,
        max_sequence_length=64,
        latents=toy_av._pack_latents(video), sigmas=[0.8, 0.4],
        audio_latents=toy_av._denormalize_audio_latents(
            toy_av._pack_audio_latents(sound), toy_av.audio_vae.latents_mean, toy_av.audio_vae.latents_std
        ),
    )  # fmt: skip
    training = training_of(toy_av, "tones")
    noisy = {VIDEO: video, AUDIO: sound}
    found, call = rebuilt(toy_av, "transformer", training, noisy, level_of(toy_av, 0), 64, fps=8.0)
    # The pipeline takes sound before it is normalised, so what comes back is rounded once more.
    torch.testing.assert_close(found.pop("audio_hidden_states"), seen.pop("audio_hidden_states"), atol=1e-6, rtol=1e-6)
    assert_same(found, seen)
    answered = training.answers((found["hidden_states"], toy_av._pack_audio_latents(sound)), call)
    assert torch.equal(answered[VIDEO], video) and torch.equal(answered[AUDIO], sound)
