"""Pipelines with encoders of pictures, from the command line: what comes out is what the stock pipeline makes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_given
import torch
from PIL import Image
from tiny_flux import build_tiny_flux

from genkit.cli.main import main
from genkit.media import read_media
from genkit.pipelines.kinds import IMAGE, VIDEO, makes_nothing
from genkit.pipelines.outputs import to_frames

SEED = 3
SIZE = {"height": 32, "width": 32}
BUILDERS = {
    "hunyuan": tiny_given.hunyuan_image_to_video,
    "hunyuan with channels": lambda: tiny_given.hunyuan_image_to_video(interleaved=False),
    "fill": tiny_given.flux_fill,
    "redux": lambda: tiny_given.flux_redux(32),
    "svd": tiny_given.stable_video,
    "qwen": tiny_given.qwen_edit_several,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("looked-at"), {}

    def folder(name):
        if name == "flux" and name not in made:
            made[name] = build_tiny_flux(place / name, guidance_embeds=True)
        if name not in made:
            BUILDERS[name]().save_pretrained(place / name)
            made[name] = place / name
        return made[name]

    return folder


@pytest.fixture
def media(tmp_path, monkeypatch):
    """A folder to stand in with pictures and a mask; Qwen's pictures are encoded small, and without videos where
    Torchvision is missing, which reads these."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
    from transformers import Qwen2VLProcessor

    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 256 * 256)
    if find_spec("torchvision") is None:
        parts = classmethod(lambda kind: ["image_processor", "tokenizer"])
        monkeypatch.setattr(Qwen2VLProcessor, "get_attributes", parts)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(f"{name}.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


RUNS = {
    # folder, class, flags, arguments of the stock pipeline
    "hunyuan": (
        "HunyuanVideoImageToVideoPipeline", ["--image", "a.png", "--num-frames", "5"],
        {"image": "a.png", "num_frames": 5},
    ),
    "hunyuan with channels": (
        "HunyuanVideoImageToVideoPipeline", ["--image", "a.png", "--num-frames", "9"],
        {"image": "a.png", "num_frames": 9},
    ),
    "fill": (
        "FluxFillPipeline", ["--image", "a.png", "--mask", "mask.png"], {"image": "a.png", "mask_image": "mask.png"}
    ),
    "svd": (
        "StableVideoDiffusionPipeline",
        ["--image", "a.png", "--num-frames", "3", "--guidance-scale", "2", "--fps", "9"],
        {"image": "a.png", "num_frames": 3, "max_guidance_scale": 2.0, "fps": 9},
    ),
    "qwen": (
        "QwenImageEditPlusPipeline", ["--image", "a.png", "--image", "b.png", "--height", "128", "--width", "128"],
        {"image": ["a.png", "b.png"], "height": 128, "width": 128},
    ),
}  # fmt: skip


def opened(value):
    if isinstance(value, list):
        return [opened(each) for each in value]
    return Image.open(value).convert("L" if value == "mask.png" else "RGB") if isinstance(value, str) else value


def stock(folder, kind, **call):
    import diffusers

    pipeline = getattr(diffusers, kind).from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(SEED), **call)


def given(folder, flags):
    sizes = [] if "--height" in flags else ["--height", "32", "--width", "32"]
    return ["--model", str(folder), *flags, *sizes, "--steps", "2", "--seed", str(SEED)]


@pytest.mark.parametrize("name", RUNS)
def test_the_command_makes_what_the_stock_pipeline_makes(name, folders, media, capsys):
    kind, flags, call = RUNS[name]
    prompt = [] if name == "svd" else ["a red circle"]
    output = "out.webp" if "num_frames" in call else "out.png"
    command = ["generate", *prompt, *given(folders(name), flags)]
    assert main([*command, "--dry-run"]) == 0, capsys.readouterr().err
    assert "inputs beside the prompt:\n  --image: needed" in capsys.readouterr().out
    assert main([*command, "-o", output]) == 0, capsys.readouterr().err
    told, made = capsys.readouterr().err, read_media(output)
    assert made.settings["made_with"]["pipeline"] == kind
    call = {"prompt": "a red circle", **SIZE, **{key: opened(value) for key, value in call.items()}}
    if name == "svd":
        del call["prompt"]
    frames = to_frames(stock(folders(name), kind, **call), VIDEO if "num_frames" in call else IMAGE)
    assert np.array_equal(frames, made.frames)
    # The first latent frame of these weights is the picture's, and the class leaves it out.
    assert ("made 5 frames of the 9 asked for" in told) == (name == "hunyuan with channels")


@pytest.mark.parametrize("name", ["hunyuan", "svd", "fill"])
def test_a_patch_acts_on_them(name, folders, media, capsys):
    flags, prompt = RUNS[name][1], [] if name == "svd" else ["a red circle"]
    command = ["generate", *prompt, *given(folders(name), flags), "--json"]
    output = "out.png" if name == "fill" else "out.webp"
    made = []
    for window in ("1x1x1", "99x99x99"):
        assert main([*command, "--attention", "neighborhood", "--attention-args", f"size={window}", "-o", output,
                     "--force"]) == 0  # fmt: skip
        assert json.loads(capsys.readouterr().out)["outputs"][0]["attention"]["ran"] > 0
        made.append(read_media(output).frames.astype(int))
    assert main([*command, "-o", output, "--force"]) == 0
    dense = read_media(output).frames.astype(int)
    assert np.abs(made[1] - dense).max() <= 1 and np.abs(made[0] - dense).max() > 1


def test_a_prompt_of_pictures(folders, media, capsys):
    """Flux Redux: its folder beside a Flux model, with the text; several pictures are added up, as the class does."""
    from diffusers import FluxPipeline, FluxPriorReduxPipeline

    pipeline = FluxPipeline.from_pretrained(folders("flux"))
    pipeline.set_progress_bar_config(disable=True)
    text = {name: getattr(pipeline, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
    prior = FluxPriorReduxPipeline.from_pretrained(folders("redux"), **text)
    for pictures in (["a.png"], ["a.png", "b.png"]):
        flags = [word for name in pictures for word in ("--image-prompt", name)]
        flags += ["--ip-adapter", f"{folders('redux')}@0.7"]
        assert main(["generate", "a red circle", *given(folders("flux"), flags), "-o", "out.png", "--force"]) == 0
        draw = torch.Generator().manual_seed(SEED)
        made = prior([opened(name) for name in pictures], prompt="a red circle", prompt_embeds_scale=0.7)
        wanted = pipeline(num_inference_steps=2, output_type="np", generator=draw, **SIZE, **made)
        assert np.array_equal(to_frames(wanted, IMAGE), read_media("out.png").frames)
    assert main(["generate", "--from", "out.png", "-o", "again.png"]) == 0
    assert np.array_equal(read_media("out.png").frames, read_media("again.png").frames)
    assert len(read_media("again.png").settings["made_with"]["ip_adapter_fingerprint"]) == 16


def test_what_does_not_go_together_is_told_before_loading(folders, media, capsys):
    other = media / "narrow"
    tiny_given.flux_redux(16).save_pretrained(other)
    redux, flux = str(folders("redux")), str(folders("flux"))
    for command, told in (
        (["a", "--model", redux, "--image", "a.png"], "makes prompt_embeds, pooled_prompt_embeds, no pictures"),
        (["a", "--model", flux, "--image-prompt", "a.png", "--ip-adapter", str(folders("svd"))], "holds a StableVideo"),
        (["a", "--model", flux, "--image-prompt", "a.png", "--ip-adapter", str(other)], "prompts of 16 numbers"),
        (["a red circle", "--model", str(folders("svd")), "--image", "a.png"], "reads no prompt: got 'a red circle'"),
        (["--model", str(folders("fill")), "--image", "a.png", "--mask", "mask.png"], "no prompt: give one"),
        (["a", "--model", str(folders("fill")), "--image", "a.png"], "FluxFillPipeline needs --mask too"),
        (
            ["--model", str(folders("svd")), "--image", "a.png", "--height", "30"],
            "--height: got 30, allowed: multiples",
        ),
    ):
        assert main(["generate", *command, "--dry-run"]) != 0
        assert told in capsys.readouterr().err


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="Torchvision is installed")
def test_a_package_that_a_part_needs_is_told_before_loading(folders, media, monkeypatch, capsys):
    from transformers import Qwen2VLProcessor

    folder = folders("qwen")
    monkeypatch.undo()
    assert Qwen2VLProcessor.get_attributes()[-1] == "video_processor"
    (folder / "processor" / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen2VLVideoProcessor"})
    )
    try:
        assert main(["generate", "a", "--model", str(folder), "--image", str(media / "a.png"), "--dry-run"]) == 1
    finally:
        (folder / "processor" / "video_preprocessor_config.json").unlink()
    told = capsys.readouterr().err
    assert "(Qwen2VLProcessor) needs the package torchvision, which is missing: install torchvision" in told


def test_what_a_class_returns_decides_what_it_is_used_for():
    """Every pipeline class of Diffusers whose call says what it returns: those without pictures are refused."""
    import diffusers
    from diffusers import DiffusionPipeline

    kinds = [getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Pipeline")]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, DiffusionPipeline)]
    told = {kind.__name__: reason for kind in kinds if (reason := makes_nothing(kind)) is not None}
    assert told["StableAudioPipeline"] == "sound alone" and told["MarigoldDepthPipeline"].startswith("prediction")
    assert "FluxPriorReduxPipeline" in told and len(kinds) - len(told) > 200
    makes = ("FluxPipeline", "WanPipeline", "LTX2Pipeline", "Kandinsky5T2IPipeline", "Cosmos3OmniPipeline")
    assert not set(makes) & set(told)


def test_outputs_that_name_one_video_or_picture_are_read(media):
    clip = np.random.default_rng(0).random((3, 4, 5, 3))
    as_bytes = np.rint(clip * 255).astype(np.uint8)
    assert np.array_equal(to_frames(SimpleNamespace(video=clip), VIDEO), as_bytes)
    assert np.array_equal(to_frames(SimpleNamespace(frames=clip[None]), VIDEO), as_bytes)
    assert np.array_equal(to_frames(SimpleNamespace(image=clip), IMAGE), as_bytes[:1])
