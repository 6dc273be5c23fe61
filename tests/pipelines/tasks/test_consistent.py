"""``genkit consistent``: one output a scene, its own record, and what is refused before weights are read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genkit import media
from genkit.cli.main import main
from genkit.errors import UnsupportedError, UsageError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.tasks.consistent.settings import ConsistentSettings, parse_box
from genkit.pipelines.tasks.consistent.task import TASK


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_sd):
    """``genkit consistent`` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=tiny_sd):
        given = ["consistent", *map(str, arguments), *([] if model is None else ["--model", str(model)])]
        code = main(given)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def ask(model, **changes):
    fixed = {
        "model": str(model),
        "prompt": "a cat in a wood",
        "subject": ("a cat",),
        "steps": 1,
        "height": 16,
        "width": 16,
    }
    return ConsistentSettings(**{**fixed, **changes})


def test_every_scene_is_an_output_that_repeats_itself(cli):
    size = ("--height", 16, "--width", 16, "--steps", 2, "--seed", 3)
    code, out, err = cli(
        "a cat in a wood", "--scene", "a cat at sea", "--subject", "a cat", "--box", "0,0,0.5,1", *size,
        "-o", "s-%d.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    files = [entry["file"] for entry in json.loads(out)["outputs"]]
    prompts = [media.read_settings(file)["settings"]["prompt"] for file in files]
    assert len(files) == 2 and prompts == ["a cat in a wood", "a cat at sea"]
    record = media.read_settings(files[1])
    assert record["command"] == "consistent" and "scene" not in record["settings"]
    code, _, err = cli("--from", files[1], "-o", "again.png", model=None)
    assert code == 0, err
    assert np.array_equal(media.read_media(files[1]).frames, media.read_media("again.png").frames)


def test_scenes_that_leave_a_subject_out_are_told_at_once(tiny_sd):
    request = resolve(ask(tiny_sd, subject=("a cat", "a dog"), scene=("a dog at sea",)))
    told = [line for line in request.notes if "left out" in line]
    assert len(told) == 2 and "'dog'" in told[0] and "'cat'" in told[1] and request.settings.scene == ()


def test_what_cannot_be_made_is_refused_in_one_line(cli, tmp_path):
    scene = ("--scene", "a cat in a wood")
    for given in (
        scene,
        ("--subject", "a cat"),
        ("--subject", "a cat", "--scene", "a dog in a wood"),
        ("--subject", "a cat", *scene, "--scene", "a dog in a wood"),
        ("--subject", "a cat", *scene, "--box", "0,0,1"),
        ("--subject", "a cat", *scene, "--box", "0.5,0,0.2,1"),
        ("--subject", "a cat", *scene, "--box", "nan,0,1,1"),
        ("--subject", "a cat", *scene, "--box", "auto", "--box", "auto"),
        ("--subject", "a cat", *scene, "--keyword", "tiger"),
        ("--subject", "a cat", *scene, "--dropout", "2"),
        ("--subject", " ", *scene),
        ("--subject", "cat " * 300, "--scene", "a cat", "--keyword", "cat"),
    ):
        code, _, err = cli(*given, "--height", 16, "--width", 16, "--steps", 1)
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("genkit: error:") and "Traceback" not in err, (given, code, err)
    assert not list(tmp_path.glob("*.png"))


def test_models_of_videos_are_refused(tiny_wan):
    with pytest.raises(UnsupportedError, match="makes videos"):
        resolve(ask(tiny_wan, height=32, width=48))


def test_boxes_are_read_and_checked():
    assert parse_box("0, 0.25,1,0.5") == (0, 0.25, 1, 0.5) and parse_box(" Auto ") is None
    for bad in ("", "a,b,c,d", "0,0,2,1", "inf,0,1,1"):
        with pytest.raises(UsageError, match="left,top,right,bottom"):
            parse_box(bad)


def test_a_model_that_tells_no_size_makes_pictures_of_the_size_it_was_trained_on(tiny_sd):
    """Without a genkit.json height and width are open; they were handed on as None."""
    asked = ConsistentSettings(prompt="a red circle on blue", subject=("a red circle",), model=str(tiny_sd), seed=1)
    settings = TASK.resolve(asked).settings
    side = settings.height
    assert isinstance(side, int) and settings.width == side
    assert TASK.resolve(asked.replace(height=2 * side)).settings.height == 2 * side
