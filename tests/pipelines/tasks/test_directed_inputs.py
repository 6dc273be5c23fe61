"""Inputs of directed videos that are wrong get one clear line before weights; --subject takes the model's own form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_pipelines
from PIL import Image

from genkit import media
from genkit.cli.main import main

PROMPT = "a red circle moves right on a blue background"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    built = {
        "i2v": lambda: tiny_pipelines.wan_image("2.1"), "5B": lambda: tiny_pipelines.wan_image("5B"),
        "first and last": lambda: tiny_pipelines.wan_image("first and last"), "vace": tiny_pipelines.wan_vace,
        "kontext": tiny_pipelines.flux_kontext, "sdxl": tiny_pipelines.stable_diffusion_xl, "ltx": tiny_pipelines.ltx,
        "hunyuan": tiny_pipelines.hunyuan_video, "wan": tiny_pipelines.wan,
    }  # fmt: skip
    made = {}

    def folder(name):
        if name not in built:
            return name
        if name not in made:
            made[name] = place / name
            built[name]().save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, folders):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save("a.png")
    Image.fromarray(rng.integers(0, 256, (40, 160, 3), np.uint8)).save("wide.png")
    media.write_media("clip.mp4", rng.integers(0, 256, (13, 64, 64, 3), np.uint8), 8)
    tmp_path.joinpath("empty.mp4").write_bytes(b"")
    tmp_path.joinpath("text.mp4").write_text("not a video")
    tmp_path.joinpath("cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:200])
    tmp_path.joinpath("text.png").write_text("not a picture")
    boxes = [{"frame": 0, "box": [0, 0, 0.5, 0.5]}, {"frame": 8, "box": [0.5, 0.5, 1, 1]}]
    tmp_path.joinpath("track.json").write_text(json.dumps({"units": "shares", "boxes": boxes}))
    _sound_alone(tmp_path / "sound.mp4")

    def call(*arguments, model="toy-video"):
        code = main(["generate", *map(str, arguments), "--model", str(folders(model))])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def _sound_alone(path):
    """A file with a sound track and no frames."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode()):
            out.mux(packet)


SHOTS = ("--prompt", PROMPT, "--prompt", "a red circle moves down on a blue background")
#: Model, what is asked of it, words of the line.
WRONG = [
    ("toy-video", (PROMPT, "--source-video", "empty.mp4"), "--source-video empty.mp4"),
    ("toy-video", (PROMPT, "--source-video", "text.mp4"), "--source-video text.mp4"),
    ("toy-video", (PROMPT, "--source-video", "cut.mp4"), "--source-video cut.mp4"),
    ("toy-video", (PROMPT, "--source-video", "sound.mp4"), "--source-video sound.mp4"),
    ("toy-video", (PROMPT, "--source-video", "."), "--source-video"),
    ("toy-video", (PROMPT, "--source-video", "a.png"), "is a picture; give a clip to continue"),
    ("toy-video", (PROMPT, "--source-video", "gone.mp4"), "gone.mp4"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--num-frames", 13), "take 17"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--num-frames", 5), "take 17"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--image", "a.png"), "leave one out"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--strength", 0.5), "--strength"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--tile-frames", 24), "24"),
    ("toy-video", (PROMPT, "--source-video", "clip.mp4", "--border-frames", 5), "goes with several prompts"),
    ("toy-video", (PROMPT, "--image", "text.png"), "text.png"),
    ("toy-video", (PROMPT, "--image", "gone.png"), "gone.png"),
    ("toy-video", (PROMPT, "--image", "clip.mp4"), "is a clip"),
    ("toy-video", (PROMPT, "--image", "a.png", "--image", "a.png"), "got 2 pictures"),
    ("toy-video", (PROMPT, "--image", "a.png", "--num-frames", 24), "24"),
    ("toy-video", (PROMPT, "--image", "a.png", "--height", 100), "100"),
    ("toy-video", (PROMPT, "--last-image", "clip.mp4"), "is a clip"),
    ("toy-av", (PROMPT, "--video", "empty.mp4"), "cannot read --video empty.mp4 as video or sound: it is damaged"),
    ("toy-av", (PROMPT, "--video", "sound.mp4"), "--video sound.mp4 has no video in it"),
    ("toy-av", (PROMPT, "--audio", "text.mp4"), "cannot read --audio text.mp4 as video or sound: it is damaged"),
    ("toy-av", (PROMPT, "--audio", "clip.mp4"), "--audio clip.mp4 has no sound in it; give a file with a soundtrack"),
    ("toy-video", (PROMPT, "--boxes", "track.json", "--boxes-weights", "text.png"), "--boxes-weights text.png is no"),
    (
        "toy-video",
        (PROMPT, "--image", "a.png", "--last-image", "wide.png", "--num-frames", 1),
        "--image a.png and --last-image wide.png are both frame 0 of 1; leave one out",
    ),
    ("toy-av", (PROMPT, "--image", "a.png", "--keyframe", "0=wide.png"), "are both frame 0 of 25; leave one out"),
    ("toy-av", (PROMPT, "--last-image", "a.png", "--keyframe", "-1=wide.png"), "are both frame 24 of 25"),
    ("toy-av", (PROMPT, "--keyframe", "8=a.png", "--keyframe", "8=wide.png"), "are both frame 8 of 25"),
    ("toy-av", (PROMPT, "--keyframe", "99=a.png"), "--keyframe: got '99=a.png', allowed: frames 0 to 24"),
    (
        "vace",
        (
            PROMPT,
            "--keyframe",
            "-1=a.png",
            "--last-image",
            "wide.png",
            "--num-frames",
            9,
            "--height",
            64,
            "--width",
            64,
        ),
        "--keyframe a.png and --last-image wide.png are both frame 8 of 9",
    ),
    ("toy-video", (PROMPT, "--keyframe", "8=a.png"), "--keyframe"),
    ("toy-video", (PROMPT, "--image", "a.png", "--only-new"), "--only-new"),
    ("toy-video", (*SHOTS, "--image", "a.png", "--source-video", "clip.mp4"), "leave one out"),
    ("toy-video", (*SHOTS, "--source-video", "sound.mp4"), "sound.mp4"),
    ("toy-video", (*SHOTS, "--num-frames", 60), "take 57 or 61"),
    ("toy-video", (*SHOTS, "--stream"), "--at: got 0 frames"),
    ("toy-video", (*SHOTS, "--border-frames", 25), "frames carried over (--border-frames, border_frames): got 25"),
    ("toy-video", (PROMPT, "--subject", "gone.png"), "gone.png"),
    ("toy-video", (PROMPT, "--subject", "a.png@much"), "--subject strength"),
    ("toy-video", (PROMPT, "--subject", "a.png@-1"), "--subject strength"),
    ("toy-video", (*SHOTS, "--subject", "a.png"), "--subject and --prompt given several times exclude each other"),
    ("toy-video", (PROMPT, "--subject", "a.png", "--stream"), "--subject and --stream exclude each other"),
    ("toy-video", (PROMPT, "--subject", "a.png", "--upscale", 2), "--subject and --upscale exclude each other"),
    ("toy-video", (PROMPT, "--subject", "a.png", "--attention", "radial"), "leave one out"),
    ("toy-video", (PROMPT, "--subject", "text.png"), "cannot read --subject text.png as an image: it is none that is"),
    ("toy-video", (PROMPT, "--subject", "clip.mp4"), "cannot read --subject clip.mp4 as an image: it is a clip"),
    ("kontext", (PROMPT, "--subject", "clip.mp4"), "cannot read --subject clip.mp4 as an image: it is a clip"),
    (
        "toy-video",
        (PROMPT, "--attention", "reference", "--reference", "clip.mp4"),
        "cannot read --reference clip.mp4 as an image: it is a clip",
    ),
    ("toy-av", (PROMPT, "--subject", "a.png"), "LTX2Pipeline has no form of it"),
    ("hunyuan", (PROMPT, "--subject", "a.png"), "HunyuanVideoPipeline has no form of it"),
    ("sdxl", (PROMPT, "--subject", "a.png"), "give --ip-adapter FILE"),
    ("kontext", (PROMPT, "--subject", "a.png@0.5"), "takes no strength there"),
    ("i2v", (PROMPT,), "--image"),
    ("i2v", (PROMPT, "--last-image", "a.png"), "last"),
    ("i2v", (PROMPT, "--image", "a.png", "--last-image", "a.png"), "see one picture only"),
    ("i2v", (*SHOTS,), "give --image FILE"),
    ("i2v", (PROMPT, "--source-video", "clip.mp4"), "--source-video"),
    ("first and last", (PROMPT, "--last-image", "a.png"), "needs --image too"),
    ("5B", (*SHOTS, "--border-frames", 5), "is given one frame"),
    ("5B", (*SHOTS, "--source-video", "clip.mp4"), "does not take it in a chain of shots"),
    (
        "vace",
        (PROMPT, "--source-video", "clip.mp4", "--only-new"),
        "--only-new is for clips that go on from their last frames",
    ),
    ("vace", (PROMPT, "--source-video", "clip.mp4", "--num-frames", 13, "--tile-frames", 9), "--tile-frames is for"),
    ("hunyuan", (*SHOTS, "--image", "a.png"), "HunyuanVideoPipeline takes no first frame"),
    ("hunyuan", (*SHOTS, "--shots-by", "chain"), "HunyuanVideoPipeline takes no first frame"),
    ("ltx", (*SHOTS, "--shots-by", "ditctrl"), "LTXPipeline is not known to take several prompts"),
    ("ltx", (*SHOTS, "--transitions", 0), "LTXPipeline is not known to take several prompts"),
    ("ltx", ("--prompt", f"{PROMPT}@12", "--prompt", f"{PROMPT}@8"), "shot 1 has 12 frames; take 9 or 17"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_one_line_before_weights(number, cli, no_weights):
    model, arguments, words = WRONG[number]
    code, out, err = cli(*arguments, model=model)
    lines = [line for line in err.splitlines() if line and "loading" not in line and "note:" not in line]
    assert code in (1, 2) and not out and len(lines) == 1, (arguments, err)
    assert words in lines[0], lines
    assert "Traceback" not in err


def plan(cli, *arguments, model):
    code, out, err = cli(*arguments, "--dry-run", "--json", model=model)
    assert code == 0, err
    return json.loads(out)["outputs"][0]["settings"], err


@pytest.mark.parametrize("text", ["@9", " @ 9"])
def test_frames_behind_a_single_prompt_are_told_as_words(text, cli):
    _, err = plan(cli, PROMPT + text, model="toy-video")
    assert "@9 at the end of the prompt is read as words" in err and "give --num-frames 9" in err
    for more in ((f"{PROMPT}@9 pixels",), (PROMPT,), ("--prompt", f"{PROMPT}@9", "--prompt", f"{PROMPT}@8")):
        assert "read as words" not in plan(cli, *more, model="toy-video")[1]


def test_a_picture_of_other_proportions_is_cut_and_told(cli):
    settings, err = plan(cli, PROMPT, "--image", "wide.png", "--height", 64, "--width", 64, model="toy-video")
    assert (settings["height"], settings["width"]) == (64, 64)
    assert "wide.png of 160x40 was scaled to 256x64 and cut to its middle, 64x64" in err


@pytest.mark.parametrize(
    ("model", "more", "setting", "told"),
    [
        ("toy-video", (), "reference", "by reference attention, with its trained weights"),
        ("wan", ("--height", 32, "--width", 32), "reference", "by reference attention, without training"),
        ("toy-image", (), "reference", "by reference attention, with its trained weights"),
        ("toy-video", ("--attention", "reference"), "reference", "--subject is given as --reference"),
        ("kontext", (), "image", "which FluxKontextPipeline looks at"),
        ("vace", ("--num-frames", 9, "--width", 64, "--height", 64), "image", "which WanVACEPipeline looks at"),
    ],
)
def test_a_subject_is_given_in_the_models_form(model, more, setting, told, cli):
    settings, err = plan(cli, PROMPT, "--subject", "a.png", *more, model=model)
    assert told in err and "subject" not in settings and "a.png" in settings[setting][0]
    assert settings.get("attention") == ("reference" if setting == "reference" else None)


def test_several_subjects_with_strengths_run_and_repeat(cli):
    options = ("--subject", "a.png@0.5", "--subject", "a.png", "--height", 64, "--width", 64, "--seed", 1, "--steps", 1)
    code, _, err = cli("a red circle", *options, "-o", "x.png", model="toy-image")
    assert code == 0, err
    again = main(["generate", "--from", "x.png", "-o", "y.png"])
    assert again == 0 and (media.read_media("x.png").frames == media.read_media("y.png").frames).all()


def test_a_decision_names_the_subject(cli):
    code, out, _ = cli(PROMPT, "--subject", "a.png", "--explain", "--json")
    route = json.loads(out)["route"]
    assert code == 0 and route["task"] == "ref2x"
    assert [each["role"] for each in route["inputs"]] == ["subject to follow"]
