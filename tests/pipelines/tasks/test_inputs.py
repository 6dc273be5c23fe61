"""Pictures and clips on the command line: what comes out is what the stock pipeline makes of the same inputs."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.wan import pipeline_wan_i2v, pipeline_wan_vace, pipeline_wan_video2video
from PIL import Image

from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.media import read_media, write_media
from genkit.pipelines.outputs import to_frames
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session, run
from genkit.pipelines.settings import GenerateSettings

SEED = 3


def plain_wan():
    pipeline = tiny_pipelines.wan()
    pipeline.register_modules(vae=tiny_pipelines.wan_21_vae())
    return pipeline


BUILDERS = {
    "wan": plain_wan,
    "i2v": lambda: tiny_pipelines.wan_image("2.1"),
    "flf": lambda: tiny_pipelines.wan_image("first and last"),
    "a14b": lambda: tiny_pipelines.wan_image("A14B"),
    "5b": lambda: tiny_pipelines.wan(expand_timesteps=True),
    "cogvideox": tiny_pipelines.cogvideox_image,
    "ltx": tiny_pipelines.ltx,
    "ltx without a shift": tiny_pipelines.ltx_conditions,
    "vace": tiny_pipelines.wan_vace,
    "sdxl": tiny_pipelines.stable_diffusion_xl,
    "sd3": tiny_pipelines.stable_diffusion_3,
    "kontext": tiny_pipelines.flux_kontext,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_sd):
    place, made = tmp_path_factory.mktemp("inputs"), {}
    builders = {**BUILDERS, "controlnet": lambda: tiny_pipelines.stable_diffusion_controlnet(tiny_sd)}

    def folder(name):
        if name not in made:
            builders[name]().save_pretrained(place / name)
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
    for module in (pipeline_wan_i2v, pipeline_wan_vace, pipeline_wan_video2video):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def picture(name):
    return Image.open(name).convert("L" if name == "mask.png" else "RGB")


def clip(name):
    return [Image.fromarray(frame) for frame in read_media(name).frames]


def usual(value):
    return picture(value) if isinstance(value, str) else value


def conditions(items):
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    return [LTXVideoCondition(image=picture(name), frame_index=place, strength=each) for name, place, each in items]


GREY = Image.new("RGB", (32, 32), (128, 128, 128))
SHAPES = {
    "video": lambda value: clip(value) if isinstance(value, str) else [picture(n) if n else GREY for n in value],
    "mask": lambda value: [Image.new("L", (32, 32), 255 * each) for each in value],
    "reference_images": lambda value: [picture(name) for name in value],
    "conditions": conditions,
}
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
    "controlnet": (
        "controlnet", "StableDiffusionControlNetPipeline", ["--control", "a.png@0.6"],
        {"image": "a.png", "controlnet_conditioning_scale": 0.6, **SMALL},
    ),
    "vace from a first and a last frame": (
        "vace", "WanVACEPipeline", ["--keyframe", "0=a.png", "--last-image", "b.png"],
        {"video": ["a.png", None, None, None, "b.png"], "mask": [0, 1, 1, 1, 0], **CLIP},
    ),
    "vace following a clip": (
        "vace", "WanVACEPipeline", ["--control", "clip.webp@0.5", "--image", "b.png"],
        {"video": "clip.webp", "mask": [1] * 5, "conditioning_scale": 0.5, "reference_images": ["b.png"], **CLIP},
    ),
    "ltx conditions": (
        "ltx without a shift", "LTXConditionPipeline", ["--image", "a.png", "--keyframe", "-1=b.png@0.5"],
        {"conditions": [("a.png", 0, 1.0), ("b.png", 8, 0.5)], "num_frames": 9, **SMALL},
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
    call = {key: SHAPES.get(key, usual)(value) for key, value in call.items()}
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


@pytest.mark.parametrize(
    ("size", "more", "told"),
    [
        ((1, 5000), [], "thin.png has 1x5000 pixels, and the size that follows it, 16x"),
        ((1, 5000), ["--width", "64"], "thin.png has 1x5000 pixels, and the size that follows it, 64x320000"),
        ((9000, 1), ["--height", "48"], "thin.png has 9000x1 pixels, and the size that follows it, 432000x48"),
        ((16, 16), ["--height", "47"], "error: --height: got 47"),
    ],
)
def test_a_size_that_nobody_wrote_is_told_as_that_of_the_picture(folders, media, capsys, size, more, told):
    Image.new("RGB", size).save("thin.png")
    given = ["--model", str(folders("i2v")), "--image", "thin.png", "--num-frames", "5", "--dry-run"]
    assert main(["generate", "a", *given, *more]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert ("give --height and --width" in line) == ("follows" in told)


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


def test_every_input_is_listed_as_taken_or_not(folders, media, capsys):
    from genkit.families.inputs import USUAL

    def listed(*arguments):
        assert main([*arguments, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        return told["inputs"] if "inputs" in told else told["models"][0]["inputs"]

    i2v = listed("models", str(folders("i2v")))
    assert {flag.removeprefix("--").replace("-", "_") for flag in i2v} >= set(USUAL)
    assert i2v["--image"] == "needed" and i2v["--upscale"] == "taken" and i2v["--mask"] == "not taken"
    assert i2v["--last-image"].startswith("not taken: these weights see one picture only")
    assert i2v["--guidance-scale-2"] == "not taken: it has no second expert"
    assert listed("models", str(folders("a14b")))["--guidance-scale-2"] == "taken"
    ltx = listed("models", str(folders("ltx")))
    assert ltx["--image"] == "taken as LTXImageToVideoPipeline" and ltx["--keyframe"] == "not taken"
    sdxl = listed("models", str(folders("sdxl")))
    assert sdxl["--control"].endswith(", with --controlnet") and sdxl["--upscale"] == "not taken"
    size = ("--num-frames", "5", "--height", "32", "--width", "32")
    plan = ("generate", "a", "--model", str(folders("i2v")), "--image", "a.png", *size, "--dry-run")
    assert listed(*plan) == i2v
    assert main([*plan]) == 0
    assert "--last-image: not taken: these weights" in capsys.readouterr().out


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


def test_vace_makes_what_the_mask_marks_and_continues_a_clip(folders, media):
    settings = GenerateSettings(
        prompt="a", model=str(folders("vace")), source_video="clip.webp", mask="mask.png", seed=1, **CLIP
    )
    made = resolve(settings).inputs
    inside = np.asarray(picture("mask.png")) == 255
    assert np.array_equal(np.asarray(made["mask"][2]) == 255, inside)
    shown = np.asarray(made["video"][2])
    assert (shown[inside] == 128).all() and np.array_equal(shown[~inside], np.asarray(clip("clip.webp")[2])[~inside])
    longer = resolve(settings.replace(mask=None, num_frames=9)).inputs
    assert [np.asarray(each).max() for each in longer["mask"]] == [0] * 5 + [255] * 4
    with pytest.raises(UsageError, match="nothing is left to make: give --mask"):
        resolve(settings.replace(mask=None))
    with pytest.raises(UsageError, match="--mask says which part of a clip is made anew; give --source-video"):
        resolve(settings.replace(source_video=None, control=("clip.webp",)))


def test_ltx_2_counts_keyframes_in_latent_frames(media):
    """On the shipped model, whose latent frames hold four frames; nothing is loaded."""
    found = resolve(
        GenerateSettings(prompt="a small red ball", model="toy-av", image=("a.png",), keyframe=("8=b.png@0.5",), seed=1)
    )
    assert [(each.index, each.strength) for each in found.inputs["conditions"]] == [(0, 1.0), (2, 0.5)]
    assert any("--keyframe 8: LTX2ConditionPipeline counts in steps of 4 frames" in line for line in found.notes)
    assert found.model.class_name == "LTX2ConditionPipeline"


def test_a_last_picture_that_the_pipeline_would_pass_over_is_refused(folders, media):
    for name, told in (("5b", "timestep of its own"), ("i2v", "see one picture only")):
        settings = GenerateSettings(
            prompt="a", model=str(folders(name)), image=("a.png",), last_image="b.png", seed=1, **CLIP
        )
        with pytest.raises(UsageError, match=told):
            resolve(settings)


def test_a_moving_file_is_no_picture_and_positions_end(folders, media, capsys):
    """Clips of any kind, and sizes beyond the table of rotary positions (32 here): told before weights are read."""
    given = ["generate", "a", "--model", str(folders("i2v")), "--dry-run"]
    assert main([*given, "--image", "clip.webp"]) == 2
    assert "--image clip.webp is a clip; WanImageToVideoPipeline takes a picture" in capsys.readouterr().err
    assert main([*given, "--image", "a.png", "--height", "528", "--width", "32"]) == 2
    assert "--height: got 528, which is 33 tokens; the positions of" in capsys.readouterr().err
    assert main([*given, "--image", "a.png", "--height", "512", "--width", "32", "--num-frames", "5"]) == 0


@pytest.fixture
def beside(tmp_path, tiny_sd):
    """A ControlNet in a folder of its own, and a Stable Diffusion with an encoder of pictures and an adapter's file."""
    from diffusers import StableDiffusionPipeline
    from tiny_ip_adapter import add_ip_adapters

    tiny_pipelines.stable_diffusion_controlnet(tiny_sd).controlnet.save_pretrained(tmp_path / "edges")
    (tmp_path / "adapters").mkdir()
    pipe = add_ip_adapters(StableDiffusionPipeline.from_pretrained(tiny_sd), tmp_path / "adapters")
    pipe.unload_ip_adapter()
    parts = {name: getattr(pipe, name) or made for name, made in seeing().items()}
    pipe.register_modules(**parts)
    pipe.save_pretrained(tmp_path / "seeing")
    return tmp_path


def seeing():
    """An encoder of pictures as Stable Diffusion has it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return {"image_encoder": CLIPVisionModelWithProjection(config).eval(), "feature_extractor": processor}


def stock_frames(pipeline, **call):
    pipeline.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        draw = torch.Generator().manual_seed(SEED)
        made = pipeline(prompt="a", num_inference_steps=2, output_type="np", generator=draw, **call)
    return np.clip(np.rint(made.images * 255), 0, 255).astype(np.uint8)


def test_a_controlnet_beside_the_model(media, beside, tiny_sd, capsys):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    given = [
        "--model",
        str(tiny_sd),
        "--control",
        "a.png",
        "--controlnet",
        "edges",
        "--steps",
        "2",
        "--seed",
        str(SEED),
    ]
    given += ["--height", "32", "--width", "32"]
    assert main(["generate", "a", *given, "-o", "one.png"]) == 0, capsys.readouterr().err
    assert main(["generate", "--from", "one.png", "-o", "two.png"]) == 0
    controlnet = ControlNetModel.from_pretrained(beside / "edges")
    stock = StableDiffusionControlNetPipeline.from_pretrained(tiny_sd, controlnet=controlnet)
    frames = stock_frames(stock, image=picture("a.png"), **SMALL)
    one = read_media("one.png")
    assert np.array_equal(one.frames, frames) and np.array_equal(read_media("two.png").frames, frames)
    assert one.settings["settings"]["controlnet"] == str(beside / "edges")
    wrong = {
        ("--controlnet", str(tiny_sd / "unet")): "which is no ControlNet",
        ("--controlnet", "none"): "no config.json",
    }
    for flags, told in wrong.items():
        assert main(["generate", "a", "--model", str(tiny_sd), "--control", "a.png", *flags, "--dry-run"]) != 0
        assert told in capsys.readouterr().err


def test_a_picture_as_a_prompt(media, beside, tiny_sd, capsys):
    from diffusers import StableDiffusionPipeline

    file = str(beside / "adapters" / "ip-adapter-0.safetensors")
    given = ["--image-prompt", "a.png", "--ip-adapter", f"{file}@0.7", "--steps", "2", "--seed", str(SEED)]
    given += ["--height", "32", "--width", "32"]
    assert main(["generate", "a", "--model", "seeing", *given, "-o", "one.png"]) == 0, capsys.readouterr().err
    stock = StableDiffusionPipeline.from_pretrained(beside / "seeing")
    stock.load_ip_adapter(str(beside / "adapters"), subfolder="", weight_name="ip-adapter-0.safetensors",
                          image_encoder_folder=None)  # fmt: skip
    stock.set_ip_adapter_scale(0.7)
    assert np.array_equal(read_media("one.png").frames, stock_frames(stock, ip_adapter_image=picture("a.png"), **SMALL))
    assert main(["generate", "a", "--model", str(tiny_sd), *given, "--dry-run"]) == 1
    assert "has an image_encoder, which reads the picture" in capsys.readouterr().err
    assert main(["generate", "a", "--model", "seeing", "--image-prompt", "a.png"]) == 2


@pytest.fixture
def as_class(folders, tmp_path):
    """A folder under another class: what is given is read and laid out without the class's own parts."""

    def made(name, kind):
        folder = shutil.copytree(folders(name), tmp_path / kind)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
        return str(folder)

    return made


def test_animate_takes_clips_by_name(as_class, media):
    write_media("face.webp", np.random.default_rng(1).integers(0, 256, (5, 24, 24, 3), np.uint8), 16)
    model = as_class("i2v", "WanAnimatePipeline")
    given = {"prompt": "a", "model": model, "image": ("a.png",), "seed": 1, **SMALL}
    settings = GenerateSettings(**given, control=("pose=clip.webp", "face=face.webp"))
    made = resolve(settings).inputs
    assert [len(made[name]) for name in ("pose_video", "face_video")] == [5, 5] and "mode" not in made
    assert made["pose_video"][0].size == (32, 32) and made["face_video"][0].size == (24, 24)  # as it is
    replaced = resolve(settings.replace(source_video="clip.webp", mask="mask.png")).inputs
    assert replaced["mode"] == "replace" and len(replaced["background_video"]) == len(replaced["mask_video"]) == 5
    with pytest.raises(UsageError, match="write pose=FILE and face=FILE"):
        resolve(settings.replace(control=("clip.webp",)))
    with pytest.raises(UsageError, match="face=FILE is missing"):
        resolve(settings.replace(control=("pose=clip.webp",)))
    with pytest.raises(UsageError, match="WanAnimatePipeline needs --control too"):
        resolve(settings.replace(control=()))


def test_several_pictures_where_the_model_looks_at_several(as_class, media):
    given = {"prompt": "a", "image": ("a.png", "b.png"), "seed": 1}
    for kind in ("QwenImageEditPlusPipeline", "QwenImage21Pipeline", "Flux2Pipeline"):
        found = resolve(GenerateSettings(**given, model=as_class("kontext", kind)))
        assert [each.size for each in found.inputs["image"]] == [(32, 32)] * 2
    with pytest.raises(UsageError, match="got 2 pictures, QwenImageEditPipeline takes one"):
        resolve(GenerateSettings(**given, model=as_class("kontext", "QwenImageEditPipeline")))
