"""Several prompts in ``genkit generate``: lengths, files, records, and what is refused before weights are read."""

from __future__ import annotations

import json

import pytest

from genkit import media
from genkit.cli.main import main
from genkit.pipelines.resolve import resolve
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.storyboard.shots import Shot, split

ONE, TWO = "a red circle moves right", "a green square moves up"
PAIR = ("--prompt", ONE, "--prompt", TWO)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    """``genkit generate`` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=tiny_wan):
        given = ["generate", *map(str, arguments), *([] if model is None else ["--model", str(model)])]
        code = main(given)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_several_prompts_make_one_clip_that_repeats_itself(cli):
    options = ("--tile-frames", 9, "--tile-overlap", 1, "--seed", 3, "--steps", 3)
    code, out, err = cli(*PAIR, *options, "-o", "clip.gif", "--json")
    assert code == 0, err
    (made,) = json.loads(out)["outputs"]
    assert made["frames"] == 25 and made["settings"]["shots"] == [ONE, TWO] and "prompt" not in made["settings"]
    assert "shot 1: frames 0 to 10, 2: frames 11 to 24" in err
    code, _, err = cli("--from", "clip.gif", "-o", "again.gif", model=None)
    assert code == 0, err
    assert (media.read_media("clip.gif").frames == media.read_media("again.gif").frames).all()


def test_a_file_says_the_same_as_flags(cli, tmp_path):
    (tmp_path / "shots.yaml").write_text(
        f"shots:\n  - prompt: {ONE}\n    frames: 13\n  - {{prompt: {TWO}, frames: 12}}\n"
    )
    options = ("--tile-frames", 9, "--seed", 1, "--dry-run", "--json")
    flags = ("--prompt", f"{ONE}@13", "--prompt", f"{TWO}@12")
    plans = [json.loads(cli(*given, *options)[1]) for given in (("--storyboard", "shots.yaml"), flags)]
    assert plans[0]["outputs"][0]["settings"] == plans[1]["outputs"][0]["settings"]
    settings = plans[0]["outputs"][0]["settings"]
    assert settings["shots"] == [f"{ONE}@13", f"{TWO}@12"] and settings["num_frames"] == 25


def test_a_length_alone_is_shared_among_the_shots(cli):
    code, out, err = cli(*PAIR, "--num-frames", 21, "--tile-frames", 9, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["outputs"][0]["settings"]["shots"] == [f"{ONE}@11", f"{TWO}@10"]
    assert split(10, 3) == [4, 3, 3]


def test_one_prompt_by_its_flag_is_the_prompt(cli):
    code, out, _ = cli("--prompt", ONE, "--dry-run", "--json")
    settings = json.loads(out)["outputs"][0]["settings"]
    assert code == 0 and settings["prompt"] == ONE and "shots" not in settings


def test_a_later_prompt_replaces_earlier_shots(cli):
    assert cli(*PAIR, "--tile-frames", 9, "-o", "clip.gif")[0] == 0
    code, out, err = cli(ONE, "--from", "clip.gif", "--dry-run", "--json", "-o", "one.gif", model=None)
    assert code == 0, err
    settings = json.loads(out)["outputs"][0]["settings"]
    assert settings["prompt"] == ONE and "shots" not in settings and "tile_frames" not in settings
    assert settings["num_frames"] == 5


def test_masks_and_one_pass_run(cli):
    options = ("--tile-frames", 9, "--steps", 3, "--sharing-layers", ":", "--sharing-steps", "0:1")
    pair = ("--prompt", ONE, "--prompt", "a red square moves up")
    assert cli(*pair, *options, "--sharing", "mask", "--sharing-words", "red", "-o", "masked.gif")[0] == 0
    assert cli(*pair, *options, "--single-pass", "-o", "once.gif")[0] == 0


def test_shots_of_texts():
    assert Shot.of("a red circle@25") == Shot("a red circle", 25)
    assert Shot.of("a red circle @ 25") == Shot("a red circle", 25)
    assert Shot.of("mail me@home") == Shot("mail me@home")
    assert Shot.of("@25") == Shot("@25")
    assert Shot.of("a red circle@25").text == "a red circle@25"


YAML = {
    "unknown": (f"shots:\n  - {{prompt: {ONE}, fps: 3}}\n  - {TWO}\n", "field of shot 1 of storyboard"),
    "top": (f"shots: [{ONE}, {TWO}]\nmodel: toy-video\n", "settings belong into --config"),
    "one": (f"shots: [{ONE}]\n", "needs two shots or more, got one"),
    "none": ("shots: []\n", "shots of storyboard"),
    "empty": ("", "must hold shots"),
    "list": (f"[{ONE}, {TWO}]\n", "must hold shots"),
    "no prompt": (f"shots:\n  - frames: 9\n  - {TWO}\n", "prompt of shot 1"),
    "number": (f"shots:\n  - 7\n  - {TWO}\n", "shot 1 of storyboard"),
    "blank": (f'shots:\n  - ""\n  - {TWO}\n', "shot 1 has no prompt"),
    "frames text": (f"shots:\n  - {{prompt: {ONE}, frames: many}}\n  - {TWO}\n", "frames of shot 1"),
    "frames zero": (f"shots:\n  - {{prompt: {ONE}, frames: 0}}\n  - {TWO}\n", "frames of shot 1"),
    "frames true": (f"shots:\n  - {{prompt: {ONE}, frames: yes}}\n  - {TWO}\n", "frames of shot 1"),
    "frames half": (f"shots:\n  - {{prompt: {ONE}, frames: 9.5}}\n  - {TWO}\n", "frames of shot 1"),
    "huge": (f"shots:\n  - {{prompt: {ONE}, frames: 999999}}\n  - {{prompt: {TWO}, frames: 2}}\n", "to 10000"),
    "some": (f"shots:\n  - {{prompt: {ONE}, frames: 13}}\n  - {TWO}\n", "shot 2 has no frames and shot 1 has"),
    "rule": (f"shots: [{ONE}@13, {TWO}@11]\n", "give shot 2 8 or 12 frames in place of 11"),
    "short": (f"shots:\n  - {{prompt: {ONE}, frames: 2}}\n  - {{prompt: {TWO}, frames: 3}}\n", "5 frames together"),
    "many": ("shots:\n" + f"  - {ONE}\n" * 101, "number of shots: got 101"),
    "broken": ("shots: [", "shots.yaml"),
}


@pytest.mark.parametrize("name", YAML)
def test_wrong_storyboards_get_one_line_before_weights(name, cli, tmp_path, no_weights):
    text, words = YAML[name]
    (tmp_path / "shots.yaml").write_text(text)
    code, out, err = cli("--storyboard", "shots.yaml", "--tile-frames", 9)
    lines = [line for line in err.splitlines() if line and "loading" not in line]
    assert code in (1, 2) and not out and len(lines) == 1, err
    assert words in lines[0], lines


WRONG = (
    *(
        (("--prompt", ONE, "--prompt", f"a circle@{frames}"), "frames of a shot: got '@")
        for frames in ("-5", "33.5", "nan", "1e3")
    ),
    (("a red circle", *PAIR), "exclude each other"),
    (("a red circle", "--shots", ONE, "--shots", TWO), "exclude each other"),
    (("--shots", ONE), "needs two shots or more"),
    ((*PAIR, "--shots", ONE), "say the same"),
    ((*PAIR, "--storyboard", "none.yaml"), "leave one out"),
    (("--storyboard", "none.yaml"), "none.yaml"),
    ((*PAIR, "--tile-frames", 10), "tile_frames: got 10"),
    ((*PAIR, "--tile-overlap", 9), "overlap: got 9"),
    ((*PAIR, "--transitions", 11), "transitions"),
    ((*PAIR, "--sharing", "mask"), "go together"),
    ((*PAIR, "--sharing-words", "red"), "go together"),
    ((*PAIR, "--sharing", "mask", "--sharing-words", "red"), "shot 2"),
    ((*PAIR, "--sharing", "all"), "sharing"),
    ((*PAIR, "--sharing-steps", "0.5"), "sharing-steps"),
    ((*PAIR, "--sharing-layers", "9:"), "layers"),
    ((*PAIR, "--attention", "neighborhood"), "the sharing of the shots"),
    ((*PAIR, "--num-frames", 20), "20 frames together"),
    ((*PAIR, "--image", "a.png"), "--image with several prompts: WanPipeline takes no first frame"),
    ((*PAIR, "--image", "a.png", "--transitions", 0), "take --shots-by chain"),
    ((*PAIR, "--shots-by", "chain"), "--shots-by chain: WanPipeline takes no first frame"),
    ((*PAIR, "--shots-by", "cuts"), "--shots-by: got 'cuts', allowed: chain, ditctrl"),
    ((*PAIR, "--shots-by", "chain", "--sharing", "none"), "--sharing belongs to --shots-by ditctrl"),
    ((*PAIR, "--shots-by", "ditctrl", "--border-frames", 5), "--border-frames belongs to --shots-by chain"),
    ((*PAIR, "--tile-overlap", 1, "--border-frames", 5), "--border-frames belongs to --shots-by chain"),
    ((*PAIR, "--border-frames", 0), "--border-frames: got 0"),
    ((*PAIR, "--upscale", 2), "exclude each other"),
    (("--prompt", f"{ONE}@13", "--prompt", f"{TWO}@12", "--num-frames", 21), "leave one out"),
    (("--prompt", "a (red:1.3) circle", "--prompt", TWO), "single prompt"),
    ((ONE, "--tile-frames", 9), "goes with several prompts"),
    ((ONE, "--single-pass"), "goes with several prompts"),
    ((ONE, "--sharing", "kv"), "--sharing goes with several prompts"),  # as the default has it
    ((ONE, "--transitions", 1), "--transitions goes with several prompts"),
    ((ONE, "--border-frames", 1), "--border-frames goes with several prompts"),
    ((ONE, "--shots-by", "chain"), "goes with several prompts"),
    ((ONE, "--border-frames", 5), "goes with several prompts"),
    ((ONE, "--only-new"), "give --source-video FILE"),
)


@pytest.mark.parametrize("arguments, words", WRONG)
def test_wrong_flags_get_one_line_before_weights(arguments, words, cli, no_weights):
    if "--image" in arguments:
        from PIL import Image

        Image.new("RGB", (16, 16)).save("a.png")
    code, out, err = cli(*arguments)
    lines = [line for line in err.splitlines() if line and "loading" not in line and "note:" not in line]
    assert code in (1, 2) and not out and len(lines) == 1, err
    assert words in lines[0], lines


@pytest.mark.parametrize("model, words", [("toy-image", "StableDiffusionPipeline"), ("toy-av", "LTX2Pipeline")])
def test_models_that_take_no_storyboard_say_so(model, words, cli, no_weights):
    code, _, err = cli(*PAIR, model=model)
    assert code in (1, 2) and words in err and "CogVideoXPipeline" in err


def test_a_storyboard_resolves_to_its_tiles(tiny_wan):
    request = resolve(GenerateSettings(model=str(tiny_wan), shots=(ONE, TWO), tile_frames=9, seed=1))
    assert request.task.name == "storyboard" and request.inputs.plan.frames == request.settings.num_frames
    assert resolve(request.settings).settings == request.settings
