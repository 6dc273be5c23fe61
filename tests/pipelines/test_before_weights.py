"""Everything knowable is told before weights are read: each wrong request fails as a dry run, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_flux import build_tiny_flux

from genkit.cli.main import main
from genkit.errors import GenkitError
from genkit.media import write_media
from genkit.pipelines import attention, prompts, recipes, resolve, session, text
from genkit.pipelines.resolve import resolve as resolved
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(scope="module")
def models(tiny_wan, tiny_sd, tmp_path_factory):
    """Tiny models, also under classes of pipelines that continue or change something."""
    place = tmp_path_factory.mktemp("models")
    found = {"wan": tiny_wan, "sd": tiny_sd, "flux": build_tiny_flux(place / "flux", guidance_embeds=True)}
    for name, folder, kind in (
        ("i2v", tiny_wan, "WanImageToVideoPipeline"),
        ("v2v", tiny_wan, "WanVideoToVideoPipeline"),
        ("img2img", tiny_sd, "StableDiffusionImg2ImgPipeline"),
        ("inpaint", tiny_sd, "StableDiffusionInpaintPipeline"),
    ):
        found[name] = shutil.copytree(folder, place / name)
        index = json.loads((found[name] / "model_index.json").read_text())
        (found[name] / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    odd = found["odd"] = shutil.copytree(tiny_wan, place / "odd")
    config = json.loads((odd / "transformer/config.json").read_text())
    (odd / "transformer/config.json").write_text(json.dumps({**config, "num_layers": "many"}))
    return found


@pytest.fixture
def work(tmp_path, monkeypatch, tiny_wan):
    """A folder to stand in, and weights that must not be read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nul.yaml").write_text('audio: "a\\0b.wav"\n')
    (tmp_path / "nul-out.yaml").write_text('output: "a\\0b.mp4"\n')
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "cat.png")
    Image.fromarray(np.full((8, 16, 3), 255, np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "cat.png").read_bytes()[:40])
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    clip = np.repeat(np.arange(5, dtype=np.uint8) * 40, 16 * 16 * 3).reshape(5, 16, 16, 3)
    write_media(tmp_path / "clip.gif", clip, 10)

    def forbidden(*args, **kwargs):
        raise AssertionError("weights were read")

    import diffusers
    import safetensors
    import safetensors.torch

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", forbidden)
    monkeypatch.setattr(safetensors.torch, "load_file", forbidden)
    monkeypatch.setattr(safetensors, "safe_open", forbidden)
    return tmp_path


RADIAL = ["--attention", "radial"]
WRONG = [
    # What the model does not have.
    ("wan", ["--attention", "block_select", "--attention-args", "score=keys"], 2, "score=keys must be trained"),
    ("wan", ["--attention", "mixture_of_heads"], 2, "its routers must be trained; give weights=FILE"),
    ("wan", ["--attention", "layer_router"], 2, "its networks must be trained; give weights=FILE"),
    (
        "wan",
        ["--attention", "sparse_linear", "--attention-args", "sparse=block_select score=keys,keys=all"],
        2,
        "must be trained",
    ),
    ("wan", [*RADIAL, "--schedule", "layers=99:"], 2, "schedule layers=99:: there are 2 layers"),
    ("wan", [*RADIAL, "--schedule", "layers=-9:"], 2, "there are 2 layers"),
    ("wan", [*RADIAL, "--schedule", "heads=99"], 2, "schedule heads=99: there are 2 heads"),
    ("wan", [*RADIAL, "--schedule", "steps=9:"], 2, "there are 2 steps"),
    ("wan", [*RADIAL, "--schedule", "branches=foo"], 2, "--schedule branches: got 'foo', allowed: cond, uncond"),
    ("wan", [*RADIAL, "--schedule", "branches=uncond", "--guidance-scale", "1"], 2, "run without guidance"),
    ("sd", ["--attention", "agent", "--schedule", "branches=cond"], 2, "computes both halves of guidance in one call"),
    ("wan", ["--attention", "cross_modal_context"], 1, "fits no attention of this model"),
    ("flux", ["--attention", "cross_modal_context"], 1, "fits no attention of this model"),
    ("wan", [*RADIAL, "--backend", "triton"], 1, "--backend triton does not run here"),
    ("odd", [*RADIAL], 1, "transformer/config.json makes no WanTransformer3DModel"),
    ("wan", ["--recipe", "flux.1-neighborhood"], 2, "does not suit this model"),
    ("flux", ["--lora", "cat.png"], 1, "cat.png"),
    # What a pipeline works on and nobody can give.
    ("i2v", [], 2, "WanImageToVideoPipeline works on image: give --image FILE"),
    ("v2v", [], 2, "WanVideoToVideoPipeline works on video: give --source-video FILE"),
    ("img2img", [], 2, "StableDiffusionImg2ImgPipeline works on image: give --image FILE"),
    ("inpaint", [], 2, "StableDiffusionInpaintPipeline works on image, mask_image: give --image FILE and --mask FILE"),
    # What is given and the model does not take, and what is missing beside it.
    ("wan", ["--image", "cat.png"], 2, "--image: WanPipeline starts from text alone"),
    ("sd", ["--image", "cat.png", "--last-image", "cat.png"], 2, "--last-image: StableDiffusionPipeline does not"),
    ("sd", ["--mask", "cat.png"], 2, "StableDiffusionInpaintPipeline needs --image too"),
    ("sd", ["--image", "cat.png", "--image", "cat.png"], 2, "got 2 pictures, StableDiffusionImg2ImgPipeline takes one"),
    ("sd", ["--image", "cat.png", "--mask", "cat.png"], 2, "the mask cat.png marks nothing"),
    ("sd", ["--image", "cat.png", "--mask", "wide.png"], 2, "wide.png"),
    ("sd", ["--image", "broken.png"], 1, "cannot read --image broken.png as an image"),
    ("sd", ["--image", "none.png"], 1, "it does not exist"),
    ("sd", ["--image", "loop"], 1, "its links lead in a circle"),
    ("sd", ["--image", "cat.png", "--strength", "0.01"], 2, "leaves no step to run"),
    ("sd", ["--image", "cat.png", "--strength", "2"], 2, "--strength: got 2"),
    ("sd", ["--strength", "0.5"], 2, "--strength says how far what is given is changed; give --image"),
    ("sd", ["--image", "cat.png", "--width", "13"], 2, "--width: got 13, allowed: multiples of"),
    ("i2v", ["--image", "cat.png@0.5"], 2, "takes no strength there"),
    ("i2v", ["--image", "cat.png", "--keyframe", "last=cat.png"], 2, "N=FILE with the number of a frame"),
    ("i2v", ["--last-image", "cat.png"], 2, "WanImageToVideoPipeline needs --image too"),
    ("v2v", ["--source-video", "cat.png"], 2, "--source-video cat.png is a picture"),
    ("v2v", ["--source-video", "broken.mp4"], 1, "broken.mp4"),
    ("v2v", ["--source-video", "clip.gif", "--num-frames", "9"], 2, "clip.gif has 5 frames at 10 fps"),
    ("i2v", ["--image", "cat.png", "--upscale", "1.1"], 2, "allowed: multiples of 16"),
    ("v2v", ["--source-video", "clip.gif", "--upscale", "2"], 1, "; WanVideoToVideoPipeline is another pipeline"),
    ("wan", ["--guidance-scale-2", "3"], 2, "has no second expert"),
    ("wan", ["--attention", "reference", "--reference", "cat.png", "--image", "cat.png"], 2, "exclude each other"),
    # What cannot be written.
    ("sd", ["-o", "a.webp"], 2, "this model makes single pictures"),
    ("sd", ["-o", "a.gif"], 2, "this model makes single pictures"),
    ("sd", ["-o", "a.mp4"], 2, "this model makes single pictures"),
    ("wan", ["-o", "a.png"], 2, "holds one image"),
    ("wan", ["-o", "loop/a.mp4"], 1, "loop leads nowhere"),
    ("wan", ["--config", "nul-out.yaml"], 2, "a text without the character NUL"),
    ("sd", ["-o", "x" * 300 + ".png"], 1, "File name too long"),
    ("sd", ["-o", "x" * 248 + ".png"], 1, "File name too long"),  # of the settings beside it
    ("sd", ["-o", "-"], 2, "nothing is written to the standard output"),
    # Rates, sizes and counts out of all proportion.
    ("wan", ["--fps", "1e-9"], 2, "--fps: got '1e-9', allowed: a number above 1/100 and up to 1000"),
    ("wan", ["--fps", "1e999999999"], 2, "--fps: got '1e999999999'"),
    ("wan", ["--fps", "23.97600000000000000001"], 2, "a rate with fewer digits"),
    ("wan", ["--steps", "1e20"], 2, "--steps: got '1e20', allowed: a whole number"),
    ("wan", ["--steps", "9" * 5000], 2, "--steps: got "),
    ("wan", ["--num-videos", "100000"], 2, "--num-videos: got 100000, allowed: a whole number from 1 to 10000"),
    ("wan", ["--max-sequence-length", "1000000001"], 2, "--max-sequence-length: got 1000000001"),
    ("wan", ["--guidance-scale", "nan"], 2, "--guidance-scale: got 'nan', allowed: a number"),
    ("wan", ["--height", "99999999"], 2, "--height: got 99999999"),
    # Files.
    ("wan", ["--config", "nul.yaml"], 2, "a text without the character NUL"),
    ("wan", ["--config", "loop"], 1, "its links lead in a circle"),
    ("wan", ["--from", "loop"], 1, "loop"),
    ("wan", ["--attention", "reference", "--reference", "https://x.example/a.png"], 1, "it is an address (https)"),
    ("wan", ["--lora", "loop"], 1, "loop"),
    ("wan", ["--attention", "reference", "--reference", "loop"], 1, "its links lead in a circle"),
    ("loop", [], 2, "loop"),
    # Texts and settings.
    (
        "sd",
        ["--prompt", "a \udcff cat"],
        2,
        "--prompt: got 'a \\udcff cat', allowed: a text in UTF-8",
    ),  # a byte of Latin-1
    ("sd", ["--negative-prompt", "\ud83e"], 2, "--negative-prompt: got '\\ud83e', allowed: a text in UTF-8"),
    ("wan", ["--prompt", "red " * 40], 2, "41 tokens, the model reads 16"),
    ("wan", ["--negative-prompt", "blue", "--guidance-scale", "1"], 2, "--guidance-scale 1 switches it off"),
    ("sd", ["--flow-shift", "3"], 1, "is no flow scheduler with a shift"),
    ("sd", ["--num-frames", "9"], 2, "takes no num_frames"),
    ("sd", ["--upscale", "2"], 1, "--upscale denoises a second time"),
    ("wan", ["--audio", "cat.png"], 2, "makes no sound"),
]


@pytest.mark.parametrize("model, given, code, told", WRONG, ids=[f"{m} {' '.join(g)[:40]}" for m, g, *_ in WRONG])
def test_a_wrong_request_fails_as_a_dry_run(work, capsys, models, model, given, code, told):
    prompt = [] if "--prompt" in given else ["a red circle"]
    before = sorted(path.name for path in work.iterdir())
    got = main(["generate", *prompt, "--dry-run", "--model", str(models.get(model, model)), *given])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("genkit: loading")]
    assert (got, captured.out) == (code, "")
    assert len(lines) == 1 and told in lines[0] and len(lines[0]) < 700
    assert sorted(path.name for path in work.iterdir()) == before


def test_a_right_request_passes_as_a_dry_run(work, capsys, models):
    given = [*RADIAL, "--schedule", "layers=1:,steps=1:,branches=cond", "--backend", "cpu", "--flow-shift", "2"]
    assert main(["generate", "a red circle", "--dry-run", "--model", str(models["wan"]), *given]) == 0
    assert main(["generate", "a red circle", "--dry-run", "--model", str(models["sd"]), "-o", "a.png"]) == 0


def ask(folder, **changes):
    return GenerateSettings(**{"prompt": "a red circle", "model": str(folder), "seed": 1, **changes})


IDLE = [
    ("wan", {"negative_prompt": "blue", "guidance_scale": None}, "guidance_scale", "it needs a guidance scale above 1"),
    ("sd", {"negative_prompt": "red", "guidance_scale": None}, "guidance_scale", "it needs a guidance scale above 1"),
    ("flux", {"negative_prompt": "blue"}, None, "called once per step"),
    ("wan", {"vae_slicing": True}, None, "--vae-slicing has no effect"),
]


@pytest.mark.parametrize("model, changes, open_value, told", IDLE)
def test_what_does_nothing_is_told(models, tmp_path, model, changes, open_value, told):
    """Also where guidance is off because the model says so, and when a record repeats what was told once."""
    folder = shutil.copytree(models[model], tmp_path / "model")
    if open_value is not None:
        path = folder / "genkit.json"
        sidecar = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**sidecar, "defaults": {**sidecar.get("defaults", {}), open_value: 1.0}}))
    request = resolved(ask(folder, **changes))
    assert [line for line in request.notes if told in line]
    again = GenerateSettings.from_mappings(stored=("record", request.settings.to_dict()))
    assert resolved(again).notes == request.notes
    off = resolved(ask(folder, **{**changes, "guidance_scale": 4.0})).notes if open_value else ()
    assert not [line for line in off if told in line]


def test_flow_shift_moves_the_steps_and_is_stored(models):
    shifted, plain = (Session(resolved(ask(models["wan"], flow_shift=shift))) for shift in (9.0, None))
    frames = [each.run().frames for each in (shifted, plain)]
    assert not np.array_equal(*frames)
    assert shifted.pipeline.scheduler.config.flow_shift == 9.0
    record = shifted.run().record["settings"]
    assert record["flow_shift"] == 9.0 and "flow_shift" not in plain.run().record["settings"]
    assert GenerateSettings.from_mappings(stored=("record", record)).flow_shift == 9.0


def test_a_recipe_brings_settings_along(models, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("settings: {flow_shift: 8, steps: 3}\nparts:\n  - attention: radial\n")
    request = resolved(ask(models["wan"], recipe=str(path), guidance_scale=2.0))
    assert (request.settings.flow_shift, request.settings.steps) == (8.0, 3)
    assert "sets --flow-shift 8" in request.notes[0] and "sets --steps 3" in request.notes[1]
    assert resolved(ask(models["wan"], recipe=str(path), flow_shift=2.0)).settings.flow_shift == 2.0
    path.write_text("settings: {colour: 8}\nparts:\n  - attention: radial\n")
    with pytest.raises(GenkitError, match="settings: got 'colour', allowed: flow_shift"):
        resolved(ask(models["wan"], recipe=str(path)))


def test_every_text_is_read_once(models, tmp_path, monkeypatch):
    """From the settings to the written result: the method, the recipe, the schedule, LoRA files and prompts."""
    from genkit.attention import registry

    counts: dict[str, int] = {}

    def counted(place, name):
        real = getattr(place, name)

        def call(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, call)

    for place, name in (
        (registry, "build"), (attention, "parse_schedule"), (attention, "parse_pairs"), (attention, "recipe"),
        (recipes, "parse"), (resolve, "parse_lora"), (resolve, "read_prompts"), (prompts, "tokenizers_of"),
        (text, "parse_pairs"), (session, "resolve"),
    ):  # fmt: skip
        counted(place, name)
    args = {"attention": "neighborhood", "attention_args": {"size": "1x3x3"}, "schedule": "steps=1:,layers=1"}
    session.run(ask(models["wan"], **args)).write(tmp_path / "a.gif")
    assert counts == {"build": 1, "parse_pairs": 1, "parse_schedule": 1, "read_prompts": 1, "resolve": 1}
    counts.clear()
    path = Path(tmp_path / "r.yaml")
    path.write_text("parts:\n  - attention: radial\n    schedule: {steps: '1:'}\n")
    session.run(ask(models["wan"], recipe=str(path))).write(tmp_path / "b.gif")
    assert counts == {"recipe": 1, "parse": 1, "build": 1, "read_prompts": 1, "resolve": 1}
