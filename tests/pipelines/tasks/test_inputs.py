"""Pictures and clips on the command line: what comes out is what the stock pipeline makes of the same inputs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.wan import pipeline_wan_i2v, pipeline_wan_video2video
from PIL import Image

from genkit.cli.main import main
from genkit.media import read_media, write_media
from genkit.pipelines.outputs import to_frames
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session, run
from genkit.pipelines.settings import GenerateSettings

SEED = 3


def plain_wan():
    """A WanPipeline with an autoencoder without patches, as 2.1 has it."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipeline = tiny_pipelines.wan()
    pipeline.register_modules(vae=vae.eval())
    return pipeline


BUILDERS = {
    "wan": plain_wan,
    "i2v": lambda: tiny_pipelines.wan_image("2.1"),
    "flf": lambda: tiny_pipelines.wan_image("first and last"),
    "a14b": lambda: tiny_pipelines.wan_image("A14B"),
    "5b": lambda: tiny_pipelines.wan(expand_timesteps=True),
    "cogvideox": tiny_pipelines.cogvideox_image,
    "ltx": tiny_pipelines.ltx,
    "sdxl": tiny_pipelines.stable_diffusion_xl,
    "sd3": tiny_pipelines.stable_diffusion_3,
    "kontext": tiny_pipelines.flux_kontext,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("inputs"), {}

    def folder(name):
        if name not in made:
            BUILDERS[name]().save_pretrained(place / name)
            made[name] = place / name
        return made[name]

    return folder


@pytest.fixture
def media(tmp_path, monkeypatch):
    """A folder to stand in, with pictures at the size of the runs, a mask and a clip."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(f"{name}.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save("mask.png")
    write_media("clip.webp", rng.integers(0, 256, (5, 32, 32, 3), np.uint8), 16)
    return tmp_path


@pytest.fixture
def stock(monkeypatch):
    """Stock pipelines read prompts without ftfy, as genkit runs them where it is missing."""
    for module in (pipeline_wan_i2v, pipeline_wan_video2video):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def picture(name):
    return Image.open(name).convert("L" if name == "mask.png" else "RGB")


def clip(name):
    return [Image.fromarray(frame) for frame in read_media(name).frames]


SMALL = {"height": 32, "width": 32}
CLIP = {**SMALL, "num_frames": 5}
RUNS = {
    # folder, class that runs, flags, the same for the stock pipeline
    "wan 2.1": ("i2v", "WanImageToVideoPipeline", ["--image", "a.png"], {"image": "a.png", **CLIP}),
    "first and last": (
        "flf", "WanImageToVideoPipeline", ["--image", "a.png", "--last-image", "b.png"],
        {"image": "a.png", "last_image": "b.png", **CLIP},
    ),
    "two experts": (
        "a14b", "WanImageToVideoPipeline", ["--image", "a.png", "--guidance-scale-2", "2"],
        {"image": "a.png", "guidance_scale_2": 2.0, **CLIP},
    ),
    "5B": ("5b", "WanImageToVideoPipeline", ["--image", "a.png"], {"image": "a.png", **CLIP}),
    "wan from a clip": (
        "wan", "WanVideoToVideoPipeline", ["--source-video", "clip.webp", "--strength", "0.7"],
        {"video": "clip.webp", "strength": 0.7, **SMALL},
    ),
    "cogvideox": ("cogvideox", "CogVideoXImageToVideoPipeline", ["--image", "a.png"],
        {"image": "a.png", "num_frames": 9, **SMALL}),
    "ltx": ("ltx", "LTXImageToVideoPipeline", ["--image", "a.png"], {"image": "a.png", "num_frames": 9, **SMALL}),
    "sdxl img2img": (
        "sdxl", "StableDiffusionXLImg2ImgPipeline", ["--image", "a.png", "--strength", "0.5"],
        {"image": "a.png", "strength": 0.5},
    ),
    "sdxl inpaint": (
        "sdxl", "StableDiffusionXLInpaintPipeline", ["--image", "a.png", "--mask", "mask.png"],
        {"image": "a.png", "mask_image": "mask.png", **SMALL},
    ),
    "sd3 img2img": ("sd3", "StableDiffusion3Img2ImgPipeline", ["--image", "a.png"], {"image": "a.png", **SMALL}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_command_makes_what_the_stock_pipeline_makes(name, folders, media, stock, capsys):
    model, kind, flags, call = RUNS[name]
    frames = call.get("num_frames", 5 if "video" in call else 1)
    output = "out.webp" if frames > 1 else "out.png"
    sizes = ["--height", "32", "--width", "32"] + (["--num-frames", str(frames)] if frames > 1 else [])
    given = ["--model", str(folders(model)), *flags, *sizes, "--steps", "4", "--seed", str(SEED)]
    assert main(["generate", "a red circle", *given, "-o", output]) == 0, capsys.readouterr().err
    made = read_media(output)
    assert made.settings["made_with"]["pipeline"] == kind

    import diffusers

    pipeline = getattr(diffusers, kind).from_pretrained(str(folders(model)))
    pipeline.set_progress_bar_config(disable=True)
    reader = {"video": clip}
    call = {key: reader.get(key, picture)(value) if isinstance(value, str) else value for key, value in call.items()}
    output_kind = resolve(GenerateSettings.from_mappings(stored=("record", made.settings["settings"]))).model.kind
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        raw = pipeline(
            prompt="a red circle",
            num_inference_steps=4,
            output_type="np",
            generator=torch.Generator().manual_seed(SEED),
            **call,
        )
    assert np.array_equal(to_frames(raw, output_kind), made.frames)


def test_a_run_repeats_from_its_record(folders, media, capsys):
    given = ["--model", str(folders("flf")), "--image", "a.png", "--last-image", "b.png"]
    assert main(["generate", "a red circle", *given, "--steps", "2", "--num-frames", "5", "-o", "one.webp",
                 "--height", "32", "--width", "48"]) == 0  # fmt: skip
    assert main(["generate", "--from", "one.webp", "-o", "two.webp"]) == 0
    one, two = read_media("one.webp"), read_media("two.webp")
    assert np.array_equal(one.frames, two.frames) and one.settings == two.settings
    stored = one.settings["settings"]
    assert stored["image"] == [str(media / "a.png")] and stored["last_image"] == str(media / "b.png")
    assert len(one.settings["made_with"]["given_fingerprints"]) == 2
    write_media("over.webp", np.zeros((1, 32, 32, 3), np.uint8), 8)
    given = ["--from", "one.webp", "--image", "over.webp", "-o", "over.webp", "--force"]
    assert main(["generate", *given]) == 2
    assert "would replace what the run reads" in capsys.readouterr().err


def test_every_change_of_size_is_told(folders, media, capsys):
    Image.fromarray(np.zeros((60, 100, 3), np.uint8)).save("wide.png")
    given = ["--model", str(folders("i2v")), "--image", "wide.png", "--num-frames", "5", "--dry-run", "--json"]
    assert main(["generate", "a", *given, "--height", "48"]) == 0
    captured = capsys.readouterr()
    settings = json.loads(captured.out)["outputs"][0]["settings"]
    assert (settings["height"], settings["width"]) == (48, 80)
    assert "the size 80x48 follows wide.png (100x60)" in captured.err
    assert "wide.png of 100x60 was scaled to 80x48" in captured.err and "cut" not in captured.err
    assert main(["generate", "a", *given, "--height", "48", "--width", "48"]) == 0
    assert "wide.png of 100x60 was scaled to 80x48 and cut to its middle, 48x48" in capsys.readouterr().err


def test_a_patch_acts_on_a_run_from_a_picture(folders, media):
    settings = GenerateSettings(
        prompt="a red circle", model=str(folders("i2v")), image=("a.png",), seed=1, steps=2, **CLIP,
        attention="neighborhood", attention_args={"size": "1x1x1"},
    )  # fmt: skip
    patched, plain = run(settings), run(settings.replace(attention=None, attention_args={}))
    assert patched.report["ran"] > 0 and not np.array_equal(patched.frames, plain.frames)


def test_kontext_makes_the_size_that_is_asked_for(folders, media):
    Image.fromarray(np.zeros((60, 120, 3), np.uint8)).save("wide.png")
    settings = GenerateSettings(prompt="a", model=str(folders("kontext")), image=("wide.png",), seed=1)
    found = resolve(settings)
    assert (found.settings.height, found.settings.width) == (724, 1448)  # the area of the class, 1024 x 1024
    assert found.inputs["max_area"] == 724 * 1448 and found.inputs["image"].size == (120, 60)
    asked = resolve(settings.replace(height=64, width=32))
    assert (asked.settings.height, asked.settings.width, asked.inputs["max_area"]) == (64, 32, 2048)


def test_a_session_of_a_picture_does_not_serve_a_text(folders, media):
    with_picture = Session(resolve(GenerateSettings(prompt="a", model=str(folders("sdxl")), image=("a.png",), seed=1)))
    with_picture.load()
    assert with_picture.again(resolve(GenerateSettings(prompt="a", model=str(folders("sdxl")), seed=1))) is None
