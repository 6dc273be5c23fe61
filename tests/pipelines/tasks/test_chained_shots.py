"""Chained shots and clips that are continued, by the command: lengths, records, and what is refused before weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_pipelines
from PIL import Image
from tiny_wan import build_tiny_wan

from genkit import media
from genkit.cli.main import main

ONE, TWO = "a red circle moves right", "a green square moves up"
PAIR = ("--prompt", ONE, "--prompt", TWO)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders by name: trained to be given frames, from a first frame alone, and with both classes."""
    place = tmp_path_factory.mktemp("models")
    build_tiny_wan(place / "given")
    sidecar = json.loads((place / "given" / "genkit.json").read_text())
    (place / "given" / "genkit.json").write_text(json.dumps({**sidecar, "given_frames": True}))
    small = {"defaults": {"height": 32, "width": 32, "num_frames": 9, "fps": 8, "steps": 2, "max_sequence_length": 8}}
    for name, pipe in (("i2v", tiny_pipelines.wan_image("2.1")), ("ltx", tiny_pipelines.ltx())):
        pipe.save_pretrained(place / name)
        own = small if name == "i2v" else {"defaults": {**small["defaults"], "width": 64}}
        (place / name / "genkit.json").write_text(json.dumps(own))
    return place


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, folders):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save("a.png")
    media.write_media("clip.webp", rng.integers(0, 256, (11, 32, 48, 3), np.uint8), 8)
    media.write_media("short.webp", rng.integers(0, 256, (3, 32, 48, 3), np.uint8), 8)

    def call(*arguments, model="given"):
        given = ["generate", *map(str, arguments), *([] if model is None else ["--model", str(folders / model)])]
        code = main(given)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def plan(cli, *arguments, **options):
    code, out, err = cli(*arguments, "--dry-run", "--json", **options)
    assert code == 0, err
    return json.loads(out)["outputs"][0]["settings"], err


def test_shots_are_chained_where_the_model_takes_a_first_frame(cli):
    code, out, err = cli(*PAIR, "--seed", 3, "-o", "clip.webp", "--force", "--json")
    assert code == 0, err
    (made,) = json.loads(out)["outputs"]
    assert made["frames"] == 9 and made["settings"]["shots"] == [f"{ONE}@5", f"{TWO}@4"]
    assert made["settings"]["shots_by"] == "chain" and "2 chained shots; shot 1: frames 0 to 4, 2: frames 5 to 8" in err
    code, _, err = cli("--from", "clip.webp", "-o", "again.webp", model=None)
    assert code == 0, err
    assert (media.read_media("clip.webp").frames == media.read_media("again.webp").frames).all()


def test_tiles_stay_available_by_name_and_by_their_settings(cli):
    for way in (("--shots-by", "ditctrl"), ("--transitions", 0), ("--sharing", "none")):
        settings, err = plan(cli, *PAIR, "--tile-frames", 9, *way)
        assert settings["shots_by"] == "ditctrl" and "tiles of 9 frames" in err


def test_a_length_is_shared_and_a_file_says_the_same(cli, tmp_path):
    settings, _ = plan(cli, *PAIR, "--num-frames", 21, "--tile-frames", 9)
    assert settings["shots"] == [f"{ONE}@9", f"{TWO}@12"] and settings["num_frames"] == 21
    (tmp_path / "shots.yaml").write_text(
        f"shots:\n  - {{prompt: {ONE}, frames: 9}}\n  - {{prompt: {TWO}, frames: 12}}\n"
    )
    assert plan(cli, "--storyboard", "shots.yaml", "--tile-frames", 9)[0]["shots"] == settings["shots"]


def test_a_first_and_a_last_frame_go_with_shots(cli):
    code, out, err = cli(*PAIR, "--image", "a.png", "--last-image", "a.png", "--seed", 1, "-o", "x.webp", "--json")
    assert code == 0, err
    assert json.loads(out)["outputs"][0]["frames"] == 9
    assert cli("--from", "x.webp", "-o", "y.webp", model=None)[0] == 0
    assert (media.read_media("x.webp").frames == media.read_media("y.webp").frames).all()


def test_a_clip_is_continued(cli):
    options = ("--tile-frames", 9, "--seed", 1, "--json")
    code, out, err = cli(ONE, "--source-video", "clip.webp", *options, "-o", "long.webp")
    assert code == 0, err
    (made,) = json.loads(out)["outputs"]
    assert made["frames"] == 15 == made["settings"]["num_frames"] and "the clip of 11 frames is continued" in err
    frames, source = media.read_media("long.webp").frames, media.read_media("clip.webp").frames
    assert (frames[:11] == source).all()
    assert cli("--from", "long.webp", "-o", "again.webp", model=None)[0] == 0
    assert (media.read_media("again.webp").frames == frames).all()
    code, out, err = cli(ONE, "--source-video", "clip.webp", *options, "--only-new", "-o", "new.webp")
    assert code == 0 and json.loads(out)["outputs"][0]["settings"]["num_frames"] == 4, err
    assert (media.read_media("new.webp").frames == frames[11:]).all()


def test_a_clip_is_continued_by_several_calls_and_shots(cli):
    options = ("--source-video", "clip.webp", "--tile-frames", 9)
    settings, err = plan(cli, ONE, *options, "--num-frames", 27)
    assert settings["num_frames"] == 27 and "16 new frames, in 4 calls of at most 9 frames" in err
    settings, err = plan(cli, ONE, *options, "--num-frames", 16, "--only-new")
    assert settings["num_frames"] == 16 and "16 new frames, in 4 calls" in err
    settings, err = plan(cli, *PAIR, *options)
    assert settings["shots"] == [f"{ONE}@4", f"{TWO}@8"] and settings["num_frames"] == 23
    assert "shot 1: frames 11 to 14, 2: frames 15 to 22" in err


def test_a_short_clip_is_told_to_show_no_motion(cli):
    short, clip = ("--source-video", "short.webp"), ("--source-video", "clip.webp")
    told = plan(cli, ONE, *short, "--tile-frames", 9)[1]
    assert "one frame shows no motion: a clip of 5 frames or more tells how it goes on" in told
    assert "the clip of 3 frames is continued; its last frame is given to the model" in told
    told = plan(cli, ONE, *clip, "--tile-frames", 5)[1]
    assert "one frame shows no motion: --tile-frames 9 or more, and a clip of 5 frames or more tells" in told
    told = plan(cli, ONE, *clip, "--tile-frames", 9, "--only-new")[1]
    assert "the clip is continued; its last 5 frames are given to the model" in told and "no motion" not in told


def test_a_model_from_a_first_frame_needs_one_and_chains(cli):
    code, _, err = cli(*PAIR, model="i2v")
    assert code == 2 and "give --image FILE" in err
    code, out, err = cli(
        *PAIR, "--image", "a.png", "--width", 32, "--height", 32, "-o", "x.webp", "--json", model="i2v"
    )
    assert code == 0, err
    assert json.loads(out)["outputs"][0]["frames"] == 17


def test_the_first_shot_is_made_from_text_by_the_class_of_the_folder(cli):
    code, out, err = cli(*PAIR, "--seed", 2, "-o", "x.webp", "--json", model="ltx")
    assert code == 0, err
    (made,) = json.loads(out)["outputs"]
    assert made["frames"] == 17 and made["settings"]["shots_by"] == "chain" and "LTXImageToVideoPipeline" in err
    assert cli(ONE, "--seed", 2, "-o", "one.webp", model="ltx")[0] == 0
    assert (media.read_media("x.webp").frames[:9] == media.read_media("one.webp").frames).all()


def test_a_method_works_on_every_call(cli):
    code, _, err = cli(*PAIR, "--attention", "neighborhood", "--attention-args", "size=3,3,3", "-o", "x.webp")
    assert code == 0, err


def test_the_decision_is_told(cli):
    code, out, _ = cli(*PAIR, "--explain", "--json")
    route = json.loads(out)["route"]
    assert code == 0 and route["task"] == "multi_prompt" and any("chained shots" in line for line in route["because"])
    code, out, _ = cli(ONE, "--source-video", "clip.webp", "--tile-frames", 9, "--explain", "--json")
    route = json.loads(out)["route"]
    assert route["task"] == "continuation" and route["inputs"][0]["role"] == "clip that is continued"


CONTINUED = (ONE, "--source-video", "clip.webp", "--tile-frames", 9)
WRONG = (
    (("--prompt", f"{ONE}@8", "--prompt", f"{TWO}@8"), "shot 1 has 8 frames; take 5 or 9"),
    (("--prompt", f"{ONE}@9", "--prompt", f"{TWO}@9"), "shot 2 has 9 frames; take 8 or 12"),
    (("--prompt", f"{ONE}@9", "--prompt", f"{TWO}@8", "--num-frames", 21), "the shots have 17 frames together"),
    ((*PAIR, "--num-frames", 20), "take 17 or 21"),
    ((*PAIR, "--num-frames", 4), "take 5"),
    ((*PAIR, "--tile-frames", 10), "10"),
    ((*PAIR, "--border-frames", 4), "frames carried over (--border-frames, border_frames): got 4"),
    ((*PAIR, "--border-frames", 5), "frames carried over (--border-frames, border_frames): got 5"),
    ((*PAIR, "--image", "a.png", "--source-video", "clip.webp", "--tile-frames", 9), "leave one out"),
    ((*PAIR, "--image", "a.png", "--image", "a.png"), "got 2 pictures"),
    ((*PAIR, "--image", "clip.webp"), "is a clip"),
    ((*PAIR, "--keyframe", "0=a.png"), "--keyframe and several prompts exclude each other"),
    ((*PAIR, "--mask", "a.png"), "--mask and several prompts exclude each other"),
    ((*PAIR, "--control", "clip.webp"), "--control and several prompts exclude each other"),
    ((*PAIR, "--image", "none.png"), "none.png"),
    ((*PAIR, "--height", 40), "40"),
    (("--prompt", "a (red:1.3) circle", "--prompt", TWO), "single prompt"),
    ((ONE, "--source-video", "a.png"), "is a picture; give a clip to continue"),
    ((ONE, "--source-video", "none.webp"), "none.webp"),
    ((*CONTINUED, "--num-frames", 11), "the clip's 11 plus a multiple of 4; take 15"),
    ((*CONTINUED, "--num-frames", 16), "take 15 or 19"),
    ((*CONTINUED, "--num-frames", 6, "--only-new"), "a multiple of 4; take 4 or 8"),
    ((*CONTINUED, "--image", "a.png"), "leave one out"),
    ((*CONTINUED, "--mask", "a.png"), "--mask"),
    ((*CONTINUED, "--strength", 0.5), "--strength"),
    ((ONE, "--image", "a.png", "--tile-frames", 9), "goes with several prompts"),
    ((ONE, "--tile-frames", 9), "or --source-video FILE"),
    ((*CONTINUED[:3], "--tile-frames", 1), "--tile-frames: got 1, allowed: 1 plus a multiple of 4, 5 or more; take 5"),
    ((*PAIR, "--tile-frames", 4), "--tile-frames: got 4, allowed: 1 plus a multiple of 4, 5 or more; take 5"),
    ((*CONTINUED[:3], "--tile-frames", 12), "take 9 or 13"),
)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_flags_get_one_line_before_weights(number, cli, no_weights):
    arguments, words = WRONG[number]
    code, out, err = cli(*arguments)
    lines = [line for line in err.splitlines() if line and "loading" not in line and "note:" not in line]
    assert code in (1, 2) and not out and len(lines) == 1, err
    assert words in lines[0], lines
