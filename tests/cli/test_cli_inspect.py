"""``genkit inspect --model M --prompt P``: plots and numbers of a run; what is refused, before weights are read."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from genkit.cli.main import main

WORDS = ["--prompt", "a red circle", "--steps", "2", "--queries", "6"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=str(tiny_wan)):
        code = main(["inspect", *(["--model", model] if model else []), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_run_is_drawn_and_told(cli, tmp_path):
    method = ["--attention", "neighborhood", "--attention-args", "size=1x1x1"]
    code, out, err = cli(*WORDS, *method, "--site", "*.1.attn1", "-o", "look.png", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["files"] == ["look.png", "look.json"] and [each["layer"] for each in told["layers"]] == [
        "blocks.1.attn1"
    ]
    found = told["methods"]["neighborhood(size=(1, 1, 1))"]
    assert 0 < found["recall"] < 1 and found["error"] > 0 and 0 < found["density"]["computed"] < 1
    numbers = json.loads((tmp_path / "look.json").read_text())
    assert numbers["settings"]["prompt"] == "a red circle" and numbers["made_with"]["model_fingerprint"]
    assert [step["step"] for step in numbers["sites"][0]["steps"]] == [0, 1]
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.format == "PNG"
    code, out, err = cli(*WORDS, "-o", "look.png")
    assert code == 2 and "exists; use --force" in err
    code, out, err = cli(*WORDS, "-o", "look.png", "--force")
    assert code == 0 and "blocks.0.attn1" in out and "mass kept" not in out
    assert "methods" in json.loads((tmp_path / "look.json").read_text())


def test_a_dry_run_tells_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli(*WORDS, "neighborhood", "--at", "-1", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["steps"] == [1] and told["methods"] == ["neighborhood()"]
    assert told["sites"] == ["blocks.0.attn1", "blocks.1.attn1"] and told["queries"] == 6 and told["notes"] == []
    code, out, _ = cli(*WORDS, "--dry-run")
    assert code == 0 and "no method" in out and "steps: 0, 1" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*WORDS, "--site", "blocks.9.attn1"], "allowed: blocks.0.attn1, blocks.1.attn1"),
        ([*WORDS, "--at", "7"], "--at 7: steps=7: there are 2 steps"),
        ([*WORDS, "--at", "soon"], "--at: got 'soon', allowed: steps"),
        ([*WORDS, "--attention", "nothing"], "got 'nothing'"),
        ([*WORDS, "--attention", "broadway"], "broadway fits no attention of this model"),
        ([*WORDS, "--attention", "agent"], "has weights for every layer"),
        ([*WORDS, "radial", "--attention", "neighborhood"], "the method is given twice"),
        ([*WORDS, "--attention-args", "size=3"], "--attention-args needs --attention NAME"),
        ([*WORDS, "--grid", "3x4x4"], "--grid belongs to the picture of a mask"),
        ([*WORDS, "--layer", "0"], "--layer belongs to the picture of a mask"),
        ([*WORDS, "-o", "look.jpg"], "a name ending in .png"),
        (["--site", "blocks.0.attn1", "radial"], "--site belongs to the look at a run"),
        (["--dry-run", "radial"], "--dry-run belongs to the look at a run"),
        ([], "give a METHOD to draw, or --model and --prompt"),
    ],
)
def test_bad_input_ends_before_anything_is_written(cli, tmp_path, words, told):
    code, out, err = cli(*words)
    assert code in (1, 2) and told in err and not out
    assert not list(tmp_path.iterdir())


def test_a_prompt_needs_a_model(cli):
    code, _, err = cli(*WORDS, model=None)
    assert code == 2 and "--prompt looks at a real run and needs --model NAME" in err


def test_masks_are_drawn_as_before(cli, tmp_path):
    code, out, _ = cli("radial", "--grid", "3x4x4", model=None)
    assert code == 0 and "48 tokens" in out and (tmp_path / "radial-3x4x4.png").is_file()
    code, out, _ = cli("--attention", "neighborhood", "--attention-args", "size=3", "-o", "mask.png")
    assert code == 0 and (tmp_path / "mask.png").is_file()


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("block_select", "score=keys"),
        ("mixture_of_heads", "shared=0.5"),
        ("layer_router", "sparse=radial"),
        ("neighborhood", "size=3"),
    ],
)
def test_a_mask_of_untrained_weights_says_so(cli, method, args):
    code, out, err = cli(method, "--attention-args", args, "--grid", "4x8x8", "--json", model=None)
    assert code == 0, err
    untrained = method != "neighborhood"
    assert json.loads(out)["untrained"] is untrained
    assert ("the picture is of untrained weights" in err and "must be trained" in err) is untrained
