"""Wan with given frames: the stock pipeline where it can do the same, clean frames where nobody else can."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from PIL import Image

import genkit
from genkit import WanGivenFramesPipeline
from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.evaluation.given_frames import draw_begun
from genkit.evaluation.metrics import psnr
from genkit.families.wan import CODEC
from genkit.pipelines.resolve import resolve
from genkit.pipelines.schedulers import FLOWS
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.inputs import last_frame
from genkit.world.caption import caption

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


class Exact:
    """An autoencoder that loses nothing: four frames of a latent one, one of the first, side by side as channels."""

    dtype = torch.float32

    def parameters(self):
        yield torch.zeros(1)

    def modules(self):
        return iter(())

    def decode(self, latents, return_dict):
        return (torch.cat([latents[:, :3, :1], *latents[:, :, 1:].unflatten(1, (4, 3)).permute(3, 0, 2, 1, 4, 5)], 2),)

    def encode(self, pixels):
        rest = pixels[:, :, 1:].unflatten(2, (-1, 4)).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
        first = torch.nn.functional.pad(pixels[:, :, :1], (0, 0, 0, 0, 0, 0, 0, 9))
        return SimpleNamespace(latents=torch.cat([first, rest], 2))


@pytest.fixture
def exact(monkeypatch):
    same = CODEC.__class__(lambda _, z: z, lambda _, z: z, "BCTHW")
    monkeypatch.setattr(last_frame, "CODEC", same)
    return Exact()


def test_a_last_frame_is_the_picture_and_the_others_stay(exact):
    clean = torch.rand(4, 12, 5, 6, 6) - 0.5
    pictures = torch.rand(2, 3, 6, 6) - 0.5
    before = last_frame.CODEC.decode(exact, clean)
    after = last_frame.CODEC.decode(exact, last_frame.ending(exact, clean, pictures))
    assert before.shape[2] == 17
    torch.testing.assert_close(after[:, :, :-1], before[:, :, :-1])
    torch.testing.assert_close(after[:, :, -1], pictures.repeat_interleave(2, 0))


@pytest.mark.parametrize(
    ("levels", "wanted"),
    [
        ([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1], {3, 5, 6}),
        ([1.0, 0.94, 0.86, 0.75, 0.6, 0.375], {5}),
        ([1.0, 0.9], {1}),
        ([1.0, 0.5, 0.5, 0.01, 0.01], {2, 4}),
        ([1.0], {0}),
        ([0.3, 0.1], {0, 1}),
    ],
)
def test_the_steps_that_put_the_picture_in_place(levels, wanted):
    assert last_frame.moments(levels) == wanted


def samplers():
    """Every sampler of flows as Diffusers has it, and those whose last level a setting leaves above 0."""
    asked = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    for name in FLOWS:
        kind = getattr(diffusers, f"{name}Scheduler")
        own = inspect.signature(kind).parameters
        fitting = {key: value for key, value in {**asked, "shift": 3.0}.items() if key in own}
        yield pytest.param(kind(**fitting), id=name)
        if name == "UniPCMultistep":
            yield pytest.param(kind(**fitting, final_sigmas_type="sigma_min"), id=f"{name} to its smallest level")


@pytest.mark.parametrize("sampler", samplers())
def test_the_picture_is_put_in_place_by_any_sampler_and_leaves_it_as_it_was(given, monkeypatch, sampler):
    seen = []
    monkeypatch.setattr(given, "scheduler", sampler)

    def ending(vae, clean, picture):
        seen.append((clean, picture))
        return torch.zeros_like(clean)

    monkeypatch.setattr(last_frame, "ending", ending)
    _, out = calls(given, last_image=picture(1))
    assert len(seen) == 1 and seen[0][1].shape == (1, 3, 32, 32)  # of three steps no other is at a small enough level
    # The last step ends at the clean latents, whatever the sampler.
    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-5, rtol=0)
    assert "step" not in vars(given.scheduler)
    loose = calls(given, last_image=picture(1), hold_last=False)[1]
    assert len(seen) == 1 and not torch.allclose(loose, out)
    monkeypatch.setattr(last_frame, "ending", _stop)
    with pytest.raises(RuntimeError, match="stop"):
        given("a", **SIZE, last_image=picture(1))
    assert "step" not in vars(given.scheduler)


class Reads(PipelineCallback):
    """A callback of Diffusers' own kind, which says itself what it reads."""

    tensor_inputs = ("prompt_embeds",)

    def __init__(self):
        super().__init__(cutoff_step_ratio=1.0)
        self.seen = []

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen.append(set(callback_kwargs))
        return callback_kwargs


def test_callbacks_are_given_what_they_say_they_read(given):
    reads = Reads()
    calls(given, last_image=picture(1), callback_on_step_end=reads)
    assert reads.seen == [{"latents", "prompt_embeds"}] * 3


def test_timesteps_of_every_token_are_those_of_the_clip(given):
    """A pipeline whose configuration says expand_timesteps, as Wan 2.2's of 5B does."""
    asked = {"image": picture(1), "last_image": picture(2)}
    wanted = calls(given, **asked)[1]
    given.register_to_config(expand_timesteps=True)
    try:
        seen, out = calls(given, **asked)
    finally:
        given.register_to_config(expand_timesteps=False)
    torch.testing.assert_close(out, wanted)
    assert seen[0]["timestep"].shape == (1, 16)


def test_pictures_of_every_kind_are_the_same_picture(given):
    array = np.asarray(picture(1))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    wanted = given._pixels("image", picture(1), (32, 32))
    for same in (
        array, array[None], [array], array / 255, array / 127.5 - 1, tensor, tensor[None], [tensor], tensor / 255,
        tensor / 127.5 - 1, picture(1).convert("RGBA"),
    ):  # fmt: skip
        torch.testing.assert_close(given._pixels("image", same, (32, 32)).to(wanted), wanted)
    # All in -1..1, though the second alone could be in 0..1.
    two = given._pixels("image", [torch.full((3, 32, 32), -1.0), torch.full((3, 32, 32), 0.5)], (32, 32))
    assert two[0].unique().tolist() == [-1] and two[1].unique().tolist() == [0.5]
    mixed = [array, picture(1), tensor]
    torch.testing.assert_close(given._pixels("beginning", mixed, (32, 32)), wanted.repeat(3, 1, 1, 1))
    # Whole numbers and Pillow pictures have their range whatever stands beside them.
    beside = given._pixels("beginning", [*mixed, tensor / 127.5 - 1, array / 127.5 - 1], (32, 32))
    torch.testing.assert_close(beside.to(wanted), wanted.repeat(5, 1, 1, 1))
    assert given._pixels("image", picture(1).convert("L"), (32, 32)).shape == (1, 3, 32, 32)
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert given._pixels("image", clear, (32, 32)).min() == 1


def test_every_prompt_has_a_last_picture_of_its_own(given):
    def made(prompts, pictures, rows):
        noise = torch.randn(2, given.vae.config.z_dim, 3, 4, 4, generator=seeded())[rows]
        asked = {**SIZE, "latents": noise, "output_type": "latent", "last_image": pictures}
        return given(prompts, **asked).frames

    both = made(["a", "b"], [picture(1), picture(2)], slice(0, 2))
    for row in (0, 1):
        alone = made(["ab"[row]], [picture(row + 1)], slice(row, row + 1))
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-3)


def test_toy_video_ends_with_the_picture():
    pipe = WanGivenFramesPipeline.from_pipe(genkit.load("toy-video"))
    pipe.set_progress_bar_config(disable=True)
    scene = draw_begun(1, 24, 17, 17)[0]
    told = {"height": 128, "width": 128, "num_frames": 17, "num_inference_steps": 8, "max_sequence_length": 64}
    asked = {**told, "last_image": Image.fromarray(scene.clip[-1]), "guidance_scale": 4.0}
    ends = []
    for hold in (True, False):
        made = pipe(caption(scene.scene), **asked, hold_last=hold, generator=seeded()).frames[0]
        ends.append(psnr(scene.clip[-1:], (made[-1:] * 255).round().astype(np.uint8)))
    assert ends[0] > 30 and ends[0] > ends[1]


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
        ({"image": [picture(1)] * 3}, "got 3 pictures for 1 prompt;"),
        ({"beginning": [picture(1)] * 9, "num_frames": 10}, "fewer than the clip's 9"),
        ({"beginning": []}, "beginning: got no picture"),
        ({"last_image": np.zeros((0, 8, 8, 3), np.uint8)}, "last_image: got no picture"),
        ({"last_image": "end.png"}, "PIL.Image.open"),
        ({"beginning": 5}, "type int, allowed: a Pillow picture"),
        ({"image": np.zeros((8, 8), np.uint8)}, "shape \\(8, 8\\)"),
        ({"image": torch.zeros(4, 8, 8)}, "\\(3, height, width\\)"),
        ({"last_image": np.full((8, 8, 3), 200.0)}, "values from 200 to 200"),
        ({"last_image": np.full((8, 8, 3), np.nan)}, "values from nan"),
        ({"image": Image.new("I;16", (8, 8))}, "mode I;16"),
    ],
)
def test_what_cannot_be_given(given, asked, told):
    with pytest.raises(UsageError, match=told):
        given("a", **{**SIZE, **asked})


def test_without_a_prompt_the_stock_call_refuses(given):
    with pytest.raises(ValueError, match="Provide either"):
        given(**SIZE, last_image=picture(1))


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
    # A number that somebody wrote is told as theirs, not as the picture's.
    asked = GenerateSettings(model="model", prompt="a", last_image="2.png", num_frames=10)
    for size in ({}, {"height": 32, "width": 32}):
        with pytest.raises(UsageError, match="^--num-frames: got 10.*try 9 or 13$"):
            resolve(asked.replace(**size))
    (folder / "genkit.json").write_text("{}")
    with pytest.raises(UsageError, match="starts from text alone"):
        resolve(GenerateSettings(model="model", prompt="a", image=("1.png",), last_image="2.png"))
