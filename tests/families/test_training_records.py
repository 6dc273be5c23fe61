"""Which pipelines can be trained, what refuses the others, and how media become latents."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_av import build_tiny_av
from tiny_sd import build_tiny_sd

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import _all
from genkit.families.sound_features import features_of
from genkit.families.training.base import AUDIO, IMAGE, SPREAD, VIDEO, Media
from genkit.families.training.lookup import trainable, training_of
from genkit.families.training.objectives import shifted
from genkit.families.training.parts import sampled_shift


def _named(name: str):
    """An object of a class that Diffusers would have, without parts."""
    return type(name, (), {"__module__": "diffusers.pipelines.some"})()


def _classes() -> list[str]:
    import diffusers

    named = {name for family in _all() for name in family.pipelines}
    return sorted(named | {name for name in dir(diffusers) if name.endswith("Pipeline")})


def test_records_of_training_load_without_heavy_libraries():
    code = (
        "import sys; from genkit.families.training import lookup; lookup.trainable();"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_pipeline_class_is_trained_or_refused_with_what_is_missing():
    refused = [name for name in _classes() if name not in trainable()]
    assert len(refused) > 50
    for name in refused:
        with pytest.raises(
            UnsupportedError,
            match=f"{name} cannot be trained: .*(how its denoiser|reads the picture|its denoiser reads)",
        ):
            training_of(_named(name))


def test_a_refusal_names_each_missing_part():
    with pytest.raises(UnsupportedError) as refused:
        training_of(_named("AllegroPipeline"))
    assert "how its latents are normalised, how prompts reach the denoiser, what the denoiser is" in str(refused.value)
    with pytest.raises(UnsupportedError) as refused:
        training_of(_named("FluxControlNetPipeline"))
    assert "does not know how its denoiser is called" in str(refused.value)
    with pytest.raises(UnsupportedError, match="reads a mask and a masked picture packed"):
        training_of(_named("FluxFillPipeline"))
    with pytest.raises(UnsupportedError, match="SimpleNamespace cannot be trained"):
        training_of(SimpleNamespace())


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(build_tiny_sd(tmp_path_factory.mktemp("sd")))


def test_a_subclass_counts_as_what_it_comes_from(stable_diffusion):
    own = type("MyPipeline", (type(stable_diffusion),), {})(
        **stable_diffusion.components, requires_safety_checker=False
    )
    assert training_of(own).streams == (IMAGE,)


def test_a_denoiser_with_channels_for_a_mask_is_refused(stable_diffusion):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    parts = stable_diffusion.components
    for change, told in (({"in_channels": 9}, "takes 9 channels"), ({"time_cond_proj_dim": 8}, "time_cond_proj_dim")):
        unet = UNet2DConditionModel.from_config(parts["unet"].config, **change)
        with pytest.raises(UnsupportedError, match=told):
            training_of(StableDiffusionPipeline(**{**parts, "unet": unet}, requires_safety_checker=False))


def test_latents_are_drawn_from_mode_and_deviation(stable_diffusion):
    training = training_of(stable_diffusion)
    media = Media(torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    fixed = training.encode(stable_diffusion, media, None)
    drawn = training.encode(stable_diffusion, media, torch.Generator().manual_seed(2))
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(2))[0]
    assert set(fixed) == {IMAGE, IMAGE + SPREAD} and set(drawn) == {IMAGE}
    assert torch.equal(drawn[IMAGE], fixed[IMAGE] + fixed[IMAGE + SPREAD] * noise)
    with torch.no_grad():
        posterior = stable_diffusion.vae.encode(media.pixels[None, :, 0]).latent_dist
    factor = stable_diffusion.vae.config.scaling_factor
    torch.testing.assert_close(fixed[IMAGE], factor * posterior.mean[0])
    torch.testing.assert_close(fixed[IMAGE + SPREAD], factor * posterior.std[0])


def test_a_model_of_pictures_refuses_clips(stable_diffusion):
    with pytest.raises(UsageError, match="trained on pictures; got a clip of 2 frames"):
        training_of(stable_diffusion).encode(stable_diffusion, Media(torch.zeros(3, 2, 16, 16)), None)


@pytest.fixture(scope="module")
def tiny_av():
    return build_tiny_av()


def test_sound_becomes_as_many_latents_as_the_pipeline_makes_and_its_tokens_are_normalised():
    pipe = genkit.load("toy-av")
    wave = torch.randn(2, 16000 * 9 // 8, generator=torch.Generator().manual_seed(1))
    media = Media(torch.zeros(3, 9, 32, 32), fps=8.0, audio=0.1 * wave, sample_rate=16000)
    found = training_of(pipe, "tones").encode(pipe, media, None)
    assert found[AUDIO].shape == found[AUDIO + SPREAD].shape == (4, 28, 7)
    with torch.no_grad():
        posterior = pipe.audio_vae.encode(features_of(pipe, "tones")(media.audio[None], 109)).latent_dist
    tokens = pipe._pack_audio_latents(posterior.mode())
    tokens = pipe._normalize_audio_latents(tokens, pipe.audio_vae.latents_mean, pipe.audio_vae.latents_std)
    torch.testing.assert_close(pipe._pack_audio_latents(found[AUDIO][None]), tokens)
    assert AUDIO not in training_of(pipe).encode(pipe, Media(torch.zeros(3, 9, 32, 32), fps=8.0), None)


@pytest.mark.parametrize(
    ("frames", "fps", "length"),
    [(121, 24, 126), (89, 24, 93), (81, 24, 84), (25, 24, 26), (121, 25, 121), (49, 24, 51)],
)
def test_length_of_sound(frames, fps, length):
    from genkit.families.training.ltx2 import sound_tokens

    rates = {"audio_sampling_rate": 16000, "audio_hop_length": 160, "audio_vae_temporal_compression_ratio": 4}
    assert sound_tokens(SimpleNamespace(**rates), frames / fps) == length


def test_clips_without_sound_leave_every_layer_of_sound_untouched(tiny_av):
    from genkit.families.training.base import Call

    training, model = training_of(tiny_av), tiny_av.transformer
    text = {name: torch.randn(1, 16, 16) for name in ("video", "audio")} | {"mask": torch.ones(1, 16)}
    noisy = torch.randn(1, 4, 2, 2, 2)
    level = torch.full((1,), 0.5)
    reached = {}
    for streams in ({VIDEO: noisy}, {VIDEO: noisy, AUDIO: torch.randn(1, 2, 5, 2)}):
        call = Call(tiny_av, model, streams, level, 1000 * level, {}, text, fps=25.0)
        model.zero_grad(set_to_none=True)
        answers = training.answers(model(**training.arguments(call)), call)
        assert set(answers) == set(streams)
        sum(part.square().mean() for part in answers.values()).backward()
        names = (name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any())
        reached[len(streams)] = {name.split(".")[2] for name in names if name.startswith("transformer_blocks.0.")}
    model.zero_grad(set_to_none=True)
    assert {"attn1", "attn2", "ff"} <= reached[1] and not any("audio" in name for name in reached[1])
    assert {"audio_attn1", "audio_to_video_attn", "video_to_audio_attn"} <= reached[2]


LTX_SCHEDULER = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024}


def _scheduler(**changes):
    import tiny_pipelines

    return SimpleNamespace(scheduler=tiny_pipelines.flow_scheduler(**changes))


@pytest.mark.parametrize(
    ("changes", "tokens", "shift"),
    [
        ({"use_dynamic_shifting": True}, 256, 1.648721),
        ({"use_dynamic_shifting": True}, 1024, 1.877611),
        ({"use_dynamic_shifting": True}, 4096, 3.158193),
        ({"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192}, 4096, 2.000803),
        (
            LTX_SCHEDULER,
            1024,
            2.58571,
        ),
        (
            LTX_SCHEDULER,
            4096,
            7.767901,
        ),
        (
            LTX_SCHEDULER,
            6144,
            16.172841,
        ),
        ({"shift": 3.0}, 4096, 3.0),
        ({"shift": 1.0}, 4096, 1.0),
    ],
)
def test_shift_is_the_schedulers_own_by_tokens(changes, tokens, shift):
    pipeline = _scheduler(**changes)
    assert sampled_shift(pipeline, tokens) == pytest.approx(shift, rel=1e-3)
    if changes.get("use_dynamic_shifting"):
        pipeline.scheduler.set_timesteps(sigmas=[0.5], mu=math.log(sampled_shift(pipeline, tokens)))
        level = shifted(torch.tensor([0.5]), sampled_shift(pipeline, tokens))
        torch.testing.assert_close(pipeline.scheduler.sigmas[:1], level)


def test_two_denoisers_share_the_levels_at_the_boundary():
    import tiny_pipelines

    pipeline = tiny_pipelines.wan(experts=True, boundary_ratio=0.875)
    training = training_of(pipeline)
    assert training.experts(pipeline) == {"transformer": (0.875, 1.0), "transformer_2": (0.0, 0.875)}
    assert training.shift(pipeline, {VIDEO: (4, 2, 4, 6)}) == 12.0
    single = tiny_pipelines.wan()
    assert training_of(single).experts(single) == {} and training.shift(single, {VIDEO: (4, 2, 4, 6)}) == 3.0
    pictures = tiny_pipelines.wan_image("A14B")
    assert training_of(pictures).experts(pictures)["transformer_2"] == (0.0, 0.9)
    assert training_of(pictures).shift(pictures, {VIDEO: (4, 2, 4, 6)}) == 5.0


def test_a_wan_model_for_pictures_in_the_pipeline_for_text_is_refused():
    import tiny_pipelines
    from diffusers import WanPipeline

    parts = tiny_pipelines.wan_image("A14B").components
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    with pytest.raises(UnsupportedError, match="takes 12 channels, the latents have 4"):
        training_of(WanPipeline(**{name: parts[name] for name in names}))
