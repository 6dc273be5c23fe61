"""The second pass at a larger size on a tiny Wan: against Diffusers' own video-to-video, its paths, its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.pipelines.load import load
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.high_resolution.second_pass import enlarge_frames, high_resolution
from genkit.pipelines.tasks.high_resolution.sizes import kept_steps, refusal, target_size

CALL = {
    "prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 5,
    "guidance_scale": 2.0, "max_sequence_length": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tiny_wan):
    return load(tiny_wan)


@pytest.fixture(scope="module")
def base(pipe):
    return pipe(**CALL, output_type="np", generator=seeded()).frames[0]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def again(pipe, base, **more):
    return high_resolution(pipe, frames=base, generator=seeded(), **{**CALL, "strength": 0.8, **more})


class Batches:
    """Batch sizes of a model's calls, as (branch, rows)."""

    def __init__(self, *models):
        self.seen = []
        self.hooks = [
            model.register_forward_pre_hook(
                lambda module, args, given: self.seen.append(given["hidden_states"].shape[0]), with_kwargs=True
            )
            for model in models
        ]

    def __enter__(self):
        return self.seen

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("flow_shift", [9.0, None])
def test_a_dense_second_pass_is_video_to_video(pipe, base, flow_shift):
    from diffusers import UniPCMultistepScheduler, WanVideoToVideoPipeline

    mine = again(pipe, base, method=None, flow_shift=flow_shift, tiling=False)
    changes = {} if flow_shift is None else {"flow_shift": flow_shift}
    parts = {name: pipe.components[name] for name in ("tokenizer", "text_encoder", "transformer", "vae")}
    other = WanVideoToVideoPipeline(
        **parts, scheduler=UniPCMultistepScheduler.from_config(pipe.scheduler.config, **changes)
    )
    other.set_progress_bar_config(disable=True)
    other.vae_scale_factor_spatial = pipe.vae_scale_factor_spatial  # it does not count the patches of a Wan 2.2 VAE
    video = (enlarge_frames(base, 64, 96)[0].permute(1, 0, 2, 3) + 1) / 2
    given = {**CALL, "height": 64, "width": 96}
    del given["num_frames"], given["prompt"]
    given["prompt_embeds"], given["negative_prompt_embeds"] = pipe.encode_prompt("a red circle", max_sequence_length=16)
    expected = other(**given, video=list(video), strength=0.8, generator=seeded(), output_type="np").frames[0]
    assert mine.frames.shape == (1, 5, 64, 96, 3) and mine.report is None
    np.testing.assert_allclose(mine.frames[0], expected, atol=2e-4)


def test_the_base_run_is_the_pipelines_own(pipe, base):
    seen = []
    made = high_resolution(
        pipe, generator=seeded(), progress=lambda *told: seen.append(told), strength=0.8, **CALL
    )  # fmt: skip
    np.testing.assert_array_equal(made.base_frames[0], base)
    assert made.frames.shape == (1, 5, 64, 96, 3) and np.isfinite(made.frames).all()
    assert seen == [("step", done, 9) for done in range(1, 10)] + [("decode", 0, 1)]


def test_a_window_that_covers_everything_is_the_dense_pass(pipe, base):
    dense = again(pipe, base, method=None).frames
    for settings in ({}, {"dual": True, "cache_steps": 1}):
        whole = genkit.SlidingWindow(base=(8, 12), scale_factor=1.0, **settings)
        np.testing.assert_allclose(again(pipe, base, method=whole).frames, dense, atol=2e-4)
    small = again(pipe, base, method=genkit.SlidingWindow(base=(2, 3))).frames
    assert not np.allclose(small, dense, atol=1e-3)


def test_two_paths_run_as_planned(pipe, base):
    with Batches(pipe.transformer) as rows:
        made = again(pipe, base)
    # Four steps, conditional and unconditional call in turn: the full path runs at every second step.
    assert rows == [2, 1, 1, 1, 2, 1, 1, 1]
    assert {site.role for site in made.report.sites} == {"self", "cross"}
    shares = {site.density.computed for site in made.report.sites if site.role == "self"}
    assert shares == {3 / 4 * 3 / 6}
    every = genkit.SlidingWindow(base=(2, 3), dual=True, cache_steps=1, override="both")
    with Batches(pipe.transformer) as rows:
        again(pipe, base, method=every)
    assert rows == [2] * 8
    with Batches(pipe.transformer) as rows:
        again(pipe, base, method=genkit.SlidingWindow(base=(2, 3)), guidance_scale=1.0)
    assert rows == [1] * 4
    kept, moved = (
        again(pipe, base, method=genkit.SlidingWindow(base=(2, 3), dual=True, offload=offload)).frames
        for offload in (False, True)
    )
    np.testing.assert_array_equal(kept, moved)


def test_nothing_is_left_on_the_pipeline(pipe, base):
    scheduler, shift = pipe.scheduler, pipe.scheduler.config.flow_shift
    tiles = (pipe.vae.use_tiling, pipe.vae.tile_sample_min_height, pipe.vae.tile_sample_stride_width)
    again(pipe, base)
    assert pipe.scheduler is scheduler and scheduler.config.flow_shift == shift
    assert (pipe.vae.use_tiling, pipe.vae.tile_sample_min_height, pipe.vae.tile_sample_stride_width) == tiles
    assert not pipe.transformer._forward_pre_hooks
    np.testing.assert_array_equal(pipe(**CALL, output_type="np", generator=seeded()).frames[0], base)


def test_tiles_have_the_base_size(pipe, base, monkeypatch):
    seen = []
    decode = type(pipe.vae).tiled_decode
    monkeypatch.setattr(
        type(pipe.vae), "tiled_decode",
        lambda vae, z, **more: seen.append((vae.tile_sample_min_height, vae.tile_sample_min_width)) or decode(vae, z),
    )  # fmt: skip
    again(pipe, base, method=None)
    assert seen == [(32, 48)]
    again(pipe, base, method=None, tiling=False)
    assert len(seen) == 1


def test_another_denoiser_starts_with_a_refresh(pipe, base):
    torch.manual_seed(1)
    second = type(pipe.transformer).from_config(pipe.transformer.config)
    two = type(pipe)(**{**pipe.components, "transformer_2": second}, boundary_ratio=0.85)
    two.set_progress_bar_config(disable=True)
    with Batches(two.transformer) as first, Batches(second) as last:
        made = again(two, base, method=genkit.SlidingWindow(base=(2, 3), dual=True, cache_steps=9))
    assert first[0] == last[0] == 2 and set(first[1:]) | set(last[1:]) == {1} and len(first) + len(last) == 8
    assert {site.name.split(".")[0] for site in made.report.sites} == {"transformer", "transformer_2"}


def test_sizes_and_strengths():
    assert target_size(480, 832, 2, 16) == (960, 1664)
    assert target_size(128, 128, 1.5, 16) == (192, 192)
    with pytest.raises(UsageError, match=r"height 1080, allowed: multiples of 16; 2.23333 gives 1072"):
        target_size(480, 832, 2.25, 16)
    for wrong in (1, 0.5, 9, True, "2"):
        with pytest.raises(UsageError, match="upscale"):
            target_size(128, 128, wrong, 16)
    assert [kept_steps(50, 0.7), kept_steps(20, 0.7), kept_steps(10, 0.3), kept_steps(4, 1)] == [35, 14, 3, 4]
    for steps, strength in ((1, 0.5), (50, 0), (50, 1.1)):
        with pytest.raises(UsageError, match="strength"):
            kept_steps(steps, strength)


def test_what_has_no_second_pass_is_told(pipe, base):
    assert "FluxPipeline is another pipeline. --enlarge" in refusal("FluxPipeline")
    assert refusal("WanPipeline") is None and "WanVACEPipeline is another" in refusal("WanVACEPipeline")
    with pytest.raises(UsageError, match="high_resolution sets latents itself"):
        again(pipe, base, latents=torch.zeros(1))
    with pytest.raises(UsageError, match="argument of the pipeline: got 'promt'"):
        again(pipe, base, promt="a")
    with pytest.raises(UsageError, match="one text"):
        again(pipe, base, prompt=["a", "b"])
    with pytest.raises(UsageError, match="values from 0 to 1"):
        again(pipe, base * 255)

    class Other:
        config = {}

    with pytest.raises(UnsupportedError, match="Other is another pipeline"):
        high_resolution(Other(), prompt="a")


def test_generate_with_upscale(tiny_wan, tmp_path):
    asked = GenerateSettings(prompt="a red circle", model=str(tiny_wan), seed=1, steps=4, upscale=2.0,
                             attention="sliding_window", schedule="steps=1:")  # fmt: skip
    made = resolve(asked)
    assert made.settings.attention_args == {"base": "2x3", "dual": "true"}
    assert (made.settings.upscale_strength, made.settings.upscale_shift) == (0.7, 9.0)
    result = Session(made).run()
    assert result.frames.shape == (5, 64, 96, 3) and result.settings.height == 32
    assert result.report["ran"] > 0 and result.report["steps"] == 2
    np.testing.assert_array_equal(Session(resolve(result.settings)).run().frames, result.frames)
    dense = Session(resolve(asked.replace(attention=None, schedule=None))).run()
    assert dense.report is None and not np.array_equal(dense.frames, result.frames)
    with pytest.raises(UsageError, match="there are 2 steps"):
        resolve(asked.replace(schedule="steps=3:"))
    with pytest.raises(UsageError, match="height 40, allowed: multiples of 16"):
        resolve(asked.replace(upscale=1.25))
    with pytest.raises(UsageError, match="--upscale-shift needs --upscale"):
        GenerateSettings(prompt="a", upscale_shift=3.0)
    own = resolve(asked.replace(attention_args={"dual": "false", "base": "1x1"}, upscale_strength=0.5)).settings
    assert own.attention_args == {"base": "1x1", "dual": "false"} and own.upscale_strength == 0.5


def picture(side, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture
def stock(monkeypatch):
    """The stock pipeline reads prompts without ftfy, as genkit runs it where that is missing."""
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", lambda text: text)


PICTURE = {
    "2.1": lambda: tiny_pipelines.wan_image("2.1"),
    "A14B": lambda: tiny_pipelines.wan_image("A14B"),
    "5B": lambda: tiny_pipelines.wan_image("5B"),
    "ltx": lambda: tiny_pipelines.ltx(pictures=True),
}


@pytest.mark.parametrize("name", list(PICTURE))
def test_from_a_picture_at_the_size_of_each_pass(name, stock):
    pipe, seen = PICTURE[name](), []
    call = {**CALL, "width": 32, "num_frames": 9, "num_inference_steps": 2}
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: seen.append(given), with_kwargs=True
    )  # fmt: skip
    large, call["image"] = picture(64, 1), picture(32)
    call |= {"strength": 1.0, "method": None, "tiling": False}
    made = high_resolution(pipe, generator=seeded(), large={"image": large}, **call)
    hook.remove()
    assert made.frames.shape == (1, 9, 64, 64, 3) and np.isfinite(made.frames).all()
    sizes = [given["hidden_states"].numel() // len(given["hidden_states"]) for given in seen]
    first = next(given for given, size in zip(seen, sizes, strict=True) if size > sizes[0])  # of the second pass
    pixels = pipe.video_processor.preprocess(large, height=64, width=64)
    states = first["hidden_states"].float()
    if name == "ltx":
        mode = pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()
        wanted = pipe._normalize_latents(mode, pipe.vae.latents_mean, pipe.vae.latents_std)
        wanted = pipe._pack_latents(wanted, 1, 1)
        torch.testing.assert_close(states[:, : wanted.shape[1]], wanted.expand(len(states), -1, -1))
        assert not first["timestep"][:, : wanted.shape[1]].any() and first["timestep"][:, wanted.shape[1] :].all()
    else:
        told = pipe.prepare_latents(pixels, 1, 4, 64, 64, 9, torch.float32, "cpu", None, torch.zeros(1, 4, 3, 4, 4))
        held = states[:, :, :1] if name == "5B" else states[:, 4:]
        torch.testing.assert_close(held, told[1])
    own = again(pipe, made.base_frames[0], **call).frames  # the first pass's picture, enlarged
    assert own.shape == made.frames.shape and not np.allclose(own, made.frames, atol=1e-3)


@pytest.mark.parametrize("name", ["2.1", "ltx"])
def test_windows_from_a_picture(name, stock):
    pipe = PICTURE[name]()
    call = {**CALL, "width": 32, "num_frames": 9, "num_inference_steps": 4, "image": picture(32), "strength": 0.5}
    base = np.random.default_rng(0).random((9, 32, 32, 3), np.float32)
    dense = again(pipe, base, **call, method=None).frames
    other = {"override": "both"} if name == "ltx" else {}
    whole = genkit.SlidingWindow(base=(9, 9), scale_factor=1.0, dual=True, cache_steps=1, **other)
    np.testing.assert_allclose(again(pipe, base, **call, method=whole).frames, dense, atol=2e-4)
    with Batches(pipe.transformer) as rows:
        made = again(pipe, base, **call)
    assert rows == ([4, 2] if name == "ltx" else [2, 1, 1, 1])
    assert {site.role for site in made.report.sites} == {"self", "cross"}
    assert not np.allclose(made.frames, dense, atol=1e-4)


def test_ltx_from_text():
    pipe, seen = tiny_pipelines.ltx(), []
    call = {**CALL, "width": 32, "num_frames": 9, "num_inference_steps": 4, "strength": 0.75}
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: seen.append(float(given["timestep"][0])), with_kwargs=True
    )  # fmt: skip
    shifted, own = (
        high_resolution(pipe, generator=seeded(), flow_shift=each, method=None, **call).frames for each in (9.0, None)
    )
    hook.remove()
    assert shifted.shape == own.shape == (1, 9, 64, 64, 3) and not np.allclose(shifted, own, atol=1e-3)
    assert len(seen) == 2 * (4 + 3) and pipe.scheduler.config.use_dynamic_shifting
    # Noise of 3/4 and 1/4 of the way, shifted by 9; LTX's scheduler stretches it so that the last step begins at 0.1.
    begin, end = (9 * share / (1 + 8 * share) for share in (0.75, 0.25))
    assert seen[4] == pytest.approx(1000 * (1 - (1 - begin) * 0.9 / (1 - end)), abs=0.1)
    assert seen[11:] != seen[4:7] and seen[6] == pytest.approx(100, abs=0.1)


def test_generate_with_upscale_from_a_picture(tmp_path):
    for name, class_name in (("2.1", "WanImageToVideoPipeline"), ("ltx", "LTXImageToVideoPipeline")):
        (tiny_pipelines.ltx() if name == "ltx" else PICTURE[name]()).save_pretrained(tmp_path / name)
        picture(64, 2).save(tmp_path / "a.png")
        asked = GenerateSettings(
            prompt="a red circle", model=str(tmp_path / name), seed=1, steps=4, upscale=2.0, width=32, height=32,
            num_frames=9, image=(str(tmp_path / "a.png"),), attention="sliding_window",
        )  # fmt: skip
        made = resolve(asked)
        assert made.model.class_name == class_name
        own, large = made.inputs
        assert np.array_equal(large["image"], picture(64, 2)) and own["image"].size == (32, 32)
        result = Session(made).run()
        assert result.frames.shape == (9, 64, 64, 3) and result.report["ran"] > 0
        assert len(result.record["made_with"]["given_fingerprints"]) == 1
        np.testing.assert_array_equal(Session(resolve(result.settings)).run().frames, result.frames)
    with pytest.raises(UsageError, match="override=cond: LTXImageToVideoPipeline computes both branches in one call"):
        resolve(asked.replace(attention_args={"override": "cond"}))
    assert resolve(asked.replace(attention_args={"dual": "false"})).attention.method.override == "cond"
    tiny_pipelines.wan_vace().save_pretrained(tmp_path / "vace")
    with pytest.raises(UnsupportedError, match="built for .*WanImageToVideoPipeline.*; WanVACEPipeline is another"):
        resolve(asked.replace(model=str(tmp_path / "vace")))
