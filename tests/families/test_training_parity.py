"""Training calls every family's denoiser with the arguments its stock pipeline hands in: equal tensors and dtypes."""

from __future__ import annotations

import pytest
import tiny_pipelines
import torch
from parity import CAPTIONS, assert_same, level_of, rebuilt, spied
from tiny_flux import build_tiny_flux
from tiny_sd import build_tiny_sd
from tiny_wan import build_tiny_wan

from genkit.families.training.base import AUDIO, IMAGE, VIDEO, Media
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_diffusion_xl(dtype):
    pipeline = tiny_pipelines.stable_diffusion_xl().to(dtype)
    noisy = _latents(4, 8, 12).to(dtype).float()
    seen = spied(
        pipeline, "unet", 1, noisy, prompt=PROMPTS, height=16, width=24, guidance_scale=1.0, original_size=(40, 60),
        crops_coords_top_left=(3, 5),
    )  # fmt: skip
    training = training_of(pipeline)
    media = training.encode(pipeline, Media(torch.zeros(3, 1, 16, 24), original=(40, 60), crop=(3, 5)), None)
    ids = {"time_ids": torch.stack([media["time_ids"]] * 2)}
    found, _ = rebuilt(pipeline, "unet", training, {IMAGE: noisy}, level_of(pipeline, 1), 77, ids)
    assert_same(found, seen, scalar_timestep=True)
    assert found["added_cond_kwargs"]["time_ids"][0].tolist() == [40, 60, 3, 5, 16, 24]


def test_stable_diffusion_xl_has_zeros_for_an_empty_caption_as_its_pipeline_has_for_no_negative_prompt():
    pipeline = tiny_pipelines.stable_diffusion_xl()
    empty, full = training_of(pipeline).text(pipeline, ["", "a red circle"], 77)
    assert not empty["states"].any() and not empty["pooled"].any() and full["states"].any() and full["pooled"].any()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert training_of(pipeline).text(pipeline, [""], 77)[0]["states"].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_diffusion_3(dtype):
    pipeline = tiny_pipelines.stable_diffusion_3().to(dtype)
    noisy = _latents(4, 8, 12).to(dtype).float()
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=16, width=24, guidance_scale=1.0,
        max_sequence_length=16,
    )  # fmt: skip
    training = training_of(pipeline)
    found, _ = rebuilt(pipeline, "transformer", training, {IMAGE: noisy}, level_of(pipeline, 1), 16)
    assert_same(found, seen)
    assert training.shift(pipeline, {IMAGE: (4, 8, 12)}) == 3.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prompts", [PROMPTS, ["a red circle", "a red square"]], ids=["padded", "equally long"])
def test_qwen_image(dtype, prompts):
    pipeline = tiny_pipelines.qwen_image().to(dtype)
    noisy = _latents(4, 8, 12).to(dtype).float()
    packed = pipeline._pack_latents(noisy, 2, 4, 8, 12)
    seen = spied(pipeline, "transformer", 1, packed, prompt=prompts, height=16, width=24, true_cfg_scale=1.0)
    training = training_of(pipeline)
    found, call = rebuilt(
        pipeline, "transformer", training, {IMAGE: noisy}, level_of(pipeline, 1), 16, captions=prompts
    )  # fmt: skip
    assert_same(found, seen)
    assert (found["encoder_hidden_states_mask"] is None) == (prompts is not PROMPTS)
    assert torch.equal(training.answers((packed,), call)[IMAGE], noisy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_kontext(dtype):
    from PIL import Image

    pipeline = tiny_pipelines.flux_kontext().to(dtype)
    noisy = _latents(4, 8, 12).to(dtype).float()
    packed = pipeline._pack_latents(noisy, 2, 4, 8, 12)
    pixels = torch.randint(0, 256, (32, 16, 3), generator=torch.Generator().manual_seed(3))
    seen = spied(
        pipeline, "transformer", 1, packed, image=Image.fromarray(pixels.numpy().astype("uint8")), prompt=PROMPTS,
        height=16, width=24, guidance_scale=2.5, max_sequence_length=16, _auto_resize=False,
        max_area=16 * 24,
    )  # fmt: skip
    training = training_of(pipeline)
    given = (pixels.permute(2, 0, 1)[:, None] / 255.0) * 2 - 1
    media = training.encode(pipeline, Media(torch.zeros(3, 1, 16, 24), given={"control": given}), None)
    reference = {"reference": torch.stack([media["reference"]] * 2)}
    found, call = rebuilt(
        pipeline, "transformer", training, {IMAGE: noisy}, level_of(pipeline, 1), 16, reference, guidance=2.5
    )
    # The pipeline normalises in the model's precision.
    known, expected = found.pop("hidden_states"), seen.pop("hidden_states")
    assert known.dtype == expected.dtype and known.shape == expected.shape == (2, 24 + 32, 16)
    assert torch.equal(known[:, :24], expected[:, :24])
    torch.testing.assert_close(known, expected, atol=1e-6 if dtype == torch.float32 else 1e-3, rtol=1.6e-2)
    assert_same(found, seen)
    assert found["img_ids"][24].tolist() == [1, 0, 0] and found["img_ids"][-1].tolist() == [1, 7, 3]
    answer = torch.cat([packed, packed[:, :3]], 1)
    assert torch.equal(training.answers((answer,), call)[IMAGE], noisy)
    assert training.needs == ("control",)
