"""``genkit compare``: from words to a report, repeats, and one clear line for every kind of bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genkit import media
from genkit.cli.main import main

FAST = ["--steps", "2", "--seed", "5", "--no-perceptual", "--no-warm-up"]
SPARSE = ["--attention", "neighborhood:size=1x3x3"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, command="compare"):
        code = main([command, *map(str, arguments), "--model", str(tiny_wan)])
        return code, *capsys.readouterr()

    return call


def test_a_report_from_the_command_line_and_the_same_again(cli, tmp_path):
    words = ["a red circle", "a green square", *SPARSE, "--cache", "first_block:threshold=100.0", *FAST]
    code, out, err = cli(*words, "--num-videos", "2", "-o", "r.html", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["name"] for row in found["variants"]] == ["dense", "neighborhood", "first_block:threshold=100.0"]
    assert found["seeds"] == [5, 6] and all(len(row["runs"]) == 4 for row in found["variants"])
    assert {path.name for path in tmp_path.iterdir()} == {"r.html", "r.json", "r.png", "r_outputs"}
    # The dense file is what genkit generate makes, and its settings are inside.
    run = found["variants"][1]["runs"][0]
    assert media.read_settings(tmp_path / run["file"])["settings"]["attention"] == "neighborhood"
    assert cli("a red circle", "--steps", 2, "--seed", 5, "-o", "alone.webp", command="generate")[0] == 0
    dense = found["variants"][0]["runs"][0]["file"]
    assert np.array_equal(media.read_media("alone.webp").frames, media.read_media(dense).frames)
    code, out, err = cli("--from", "r.json", "--json", "--no-warm-up", "-o", "again.html")
    assert code == 0, err
    again = json.loads(out)
    values = [[[run["values"] for run in row["runs"]] for row in each["variants"]] for each in (found, again)]
    assert values[0] == values[1] and again["prompts"] == found["prompts"]


def test_a_dry_run_tells_variants_memory_and_files_and_makes_nothing(cli, tmp_path):
    code, out, _ = cli("a red circle", *SPARSE, *FAST, "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["outputs"] == 2 and 0 < told["needed_bytes"] < told["free_bytes"]
    assert told["files"][0] == "comparison.html" and not list(tmp_path.iterdir())
    code, out, err = cli("a red circle", *SPARSE, *FAST, "--vae-slicing", "--dry-run", "--json")
    notes = json.loads(out)["notes"]
    assert len(notes) == 1 and "--vae-slicing has no effect" in notes[0] and f"genkit: note: {notes[0]}\n" in err
    code, out, _ = cli("a red circle", *SPARSE, *FAST, "--dry-run")
    assert "dense (baseline)" in out and "of memory" in out


def test_variants_of_a_configuration_file(cli, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "prompts: [a red circle]\nvariants:\n  few steps: {steps: 1}\n  late: {attention: neighborhood, "
        'attention_args: {size: 1x3x3}, schedule: "steps=1:"}\n'
    )
    code, out, err = cli("--config", "c.yaml", *FAST, "--json", "-o", "r.html")
    assert code == 0, err
    found = json.loads(out)
    few = found["variants"][1]
    assert few["name"] == "few steps" and "cannot be compared step by step" in few["runs"][0]["missing"]["latent_error"]
    assert found["variants"][2]["runs"][0]["per_step"]["latent_error"][0] == 0


def test_a_variant_that_fails_leaves_the_others_and_an_exit_code(cli, tmp_path, monkeypatch):
    from genkit.attention.neighborhood import Neighborhood

    def attend(self, *rest):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Neighborhood, "attend", attend)
    code, _, err = cli("a red circle", *SPARSE, "--variant", "short: steps=1", *FAST, "-o", "r.html")
    assert code == 1 and "neighborhood failed" in err and "out of luck" in err and "1 of 3 variants failed" in err
    found = json.loads((tmp_path / "r.json").read_text())
    assert [len(row["runs"]) for row in found["variants"]] == [1, 0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SPARSE], "no prompt"),
        (["a red circle"], "nothing to compare"),
        (["a red circle", "--attention", "radical"], "variant radical: .*radial"),
        (["a red circle", "--attention", "neighborhood:sizes=3"], "variant neighborhood: .*size"),
        (["a red circle", "--attention", "neighborhood:size=1x3x3@steps=9:"], "variant neighborhood: .*steps"),
        (["a red circle", "--recipe", "nothing"], "variant nothing"),
        (["a red circle", "--cache", "second"], "first_block"),
        (["a red circle", "--variant", "x: seed=3"], "seed"),
        (["a red circle", *SPARSE, "--baseline", "sparse"], "--baseline"),
        (["a red circle", "--schedule", "steps=1:", "--cache", "first_block"], "--schedule is for methods"),
        (["a red circle", "a red circle", *SPARSE], "given twice"),
        (["a red circle", *SPARSE, "-o", "r.mp4"], "ending in .html"),
        (["a red circle", "--prompt", "b", *SPARSE], "leave one out"),
        (["word " * 400, *SPARSE], "variant dense: .*(long|tokens)"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(cli, tmp_path, words, said):
    import re

    code, out, err = cli(*words, *FAST)
    lines = [line for line in err.splitlines() if "error" in line]
    assert code == 2 and len(lines) == 1 and re.search(said, lines[0]), err
    assert not out and not list(tmp_path.iterdir())


def test_a_report_is_kept_without_force_and_folders_are_made(cli, tmp_path):
    (tmp_path / "r.html").write_text("mine")
    code, _, err = cli("a red circle", *SPARSE, *FAST, "-o", "r.html")
    assert code == 2 and "--force" in err and (tmp_path / "r.html").read_text() == "mine"
    (tmp_path / "file").write_text("")
    code, _, err = cli("a red circle", *SPARSE, *FAST, "-o", "file/r.html")
    assert code != 0 and "r.html" in err or "cannot write" in err
    code, _, err = cli("a red circle", *SPARSE, *FAST, "-o", "new/deep/r.html")
    assert code == 0 and (tmp_path / "new/deep/r.html").exists(), err


def test_too_little_memory_is_said_before_anything_is_loaded(cli, tmp_path, monkeypatch):
    from genkit.pipelines import memory

    monkeypatch.setattr(memory, "free", lambda device: 1000)
    code, _, err = cli("a red circle", *SPARSE, *FAST)
    assert code == 1 and "needs at least" in err and "are free on cpu" in err and not list(tmp_path.iterdir())


def test_a_record_of_somebody_else_names_no_files(cli, tmp_path):
    record = {"command": "compare", "settings": {"prompts": ["x"], "variant": ["a: lora=/etc/secret.safetensors"]}}
    (tmp_path / "r.json").write_text(json.dumps(record))
    code, _, err = cli("--from", "r.json", *FAST)
    assert code == 2 and "names a file in a variant" in err
    (tmp_path / "g.json").write_text(json.dumps({"command": "generate", "settings": {"prompt": "x"}}))
    code, _, err = cli("--from", "g.json", *FAST)
    assert code == 2 and "genkit generate" in err


def test_perceptual_by_name_needs_its_package(cli, tmp_path, monkeypatch):
    from genkit.evaluation.comparison import perceptual

    monkeypatch.setattr(perceptual, "why_not", lambda: "the package stlpips-pytorch is not installed")
    code, _, err = cli("a red circle", *SPARSE, "--perceptual", "--dry-run")
    assert code == 1 and "stlpips-pytorch is not installed" in err
