"""Wan with given frames: the stock pipeline where it can do the same, clean frames where nobody else can."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from PIL import Image

import genkit
from genkit import WanGivenFramesPipeline
from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.families.wan import CODEC
from genkit.pipelines.resolve import resolve
from genkit.pipelines.settings import GenerateSettings

SIZE = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 3}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture(autouse=True)
def _no_ftfy(monkeypatch):
    for module in (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@pytest.fixture(scope="module")
def stock():
    pipe = tiny_pipelines.wan()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def given(stock):
    return WanGivenFramesPipeline.from_pipe(stock)


def test_nothing_given_is_the_stock_pipeline(stock, given):
    wanted = stock("a", **SIZE, generator=seeded()).frames
    assert np.array_equal(given("a", **SIZE, generator=seeded()).frames, wanted)


def test_a_first_frame_is_what_the_stock_pipeline_makes_of_it(given):
    stock = tiny_pipelines.wan_image("5B")
    stock.register_modules(**{name: part for name, part in given.components.items() if part is not None})
    stock.set_progress_bar_config(disable=True)
    asked = {**SIZE, "image": picture(1), "prompt": ["a", "b"]}
    wanted = stock(**asked, generator=seeded()).frames
    np.testing.assert_allclose(given(**asked, generator=seeded()).frames, wanted, atol=1e-5)


def calls(given, **asked):
    """What the transformer is called with in every step, and the latents that come out."""
    seen = []
    hook = given.transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    out = given("a", **SIZE, **asked, generator=seeded(), output_type="latent").frames
    hook.remove()
    return seen, out


def encoded(given, pictures):
    pixels = given.video_processor.preprocess(pictures, height=32, width=32)
    return CODEC.encode(given.vae, pixels.transpose(0, 1)[None])


def test_a_last_picture_stands_clean_behind_the_clip(given):
    seen, out = calls(given, image=picture(1), last_image=picture(2))
    front, last = encoded(given, [picture(1)]), encoded(given, [picture(2)])
    assert out.shape[2] == 3 and torch.equal(out[:, :, :1], front)
    for each in seen:
        states, levels = each["hidden_states"], each["timestep"].view(1, 4, 4)
        assert torch.equal(states[:, :, :1], front) and torch.equal(states[:, :, 3:], last)
        assert not levels[:, [0, 3]].any() and (levels[:, 1:3] > 0).all()
    other = calls(given, image=picture(1), last_image=picture(3))[1]
    assert not torch.equal(out, other)


def test_a_beginning_is_kept(given):
    frames = [picture(seed) for seed in range(5)]
    seen, out = calls(given, beginning=frames)
    assert torch.equal(out[:, :, :2], encoded(given, frames))
    assert not seen[-1]["timestep"].view(1, 3, 4)[:, :2].any()


def test_hooks_go_and_callbacks_stay(given):
    steps = []

    def after(pipe, step, time, values):
        steps.append(step)
        return {"latents": values["latents"] + 1}

    calls(given, last_image=picture(1), callback_on_step_end=after)
    assert steps == [0, 1, 2]
    assert not given.transformer._forward_hooks and not given.transformer._forward_pre_hooks
    with pytest.raises(RuntimeError):
        given("a", **SIZE, last_image=picture(1), callback_on_step_end=_stop)
    assert not given.transformer._forward_hooks


def _stop(*_):
    raise RuntimeError("stop")


def test_a_patch_sees_the_frames_behind_the_clip(given):
    asked = {"image": picture(1), "last_image": picture(2)}
    dense = calls(given, **asked)[1]
    with genkit.patch(given, genkit.Neighborhood(size=(9, 9, 9))) as handle:
        full = calls(given, **asked)[1]
        assert "6 of 6 attention calls ran the method" in str(handle.report())
    with genkit.patch(given, genkit.Neighborhood(size=(1, 1, 1))):
        narrow = calls(given, **asked)[1]
    torch.testing.assert_close(full, dense, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(narrow, dense, atol=1e-3)
    assert torch.equal(calls(given, **asked)[1], dense)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"image": picture(1), "beginning": [picture(1)]}, "give one of them"),
        ({"beginning": [picture(1)] * 4}, "1 \\+ 4 n frames"),
        ({"beginning": [picture(1)] * 9}, "fewer than the clip's 9"),
        ({"image": [picture(1)] * 3}, "got 3 pictures for 1 prompts"),
    ],
)
def test_what_cannot_be_given(given, asked, told):
    with pytest.raises(UsageError, match=told):
        given("a", **SIZE, **asked)


def test_two_transformers_are_refused():
    pipe = WanGivenFramesPipeline.from_pipe(tiny_pipelines.wan(experts=True))
    with pytest.raises(UsageError, match="two transformers"):
        pipe("a", **SIZE, image=picture(1))


@pytest.fixture
def folder(stock, tmp_path):
    stock.save_pretrained(tmp_path / "model")
    sidecar = {"given_frames": True, "defaults": {"height": 32, "width": 32, "num_frames": 9, "steps": 3}}
    (tmp_path / "model" / "genkit.json").write_text(json.dumps(sidecar))
    return tmp_path / "model"


def test_a_folder_says_that_it_is_trained_for_it(folder, tmp_path, given, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        picture(number).save(f"{number}.png")
    request = resolve(GenerateSettings(model="model", prompt="a", image=("1.png",), last_image="2.png"))
    assert request.model.pipeline_class is WanGivenFramesPipeline
    made = ["generate", "a", "--model", "model", "--image", "1.png", "--last-image", "2.png", "-o", "out.webp"]
    assert main(made) == 0
    assert (tmp_path / "out.webp").is_file()
    (folder / "genkit.json").write_text("{}")
    with pytest.raises(UsageError, match="starts from text alone"):
        resolve(GenerateSettings(model="model", prompt="a", image=("1.png",), last_image="2.png"))
