"""The listing commands, inspect and doctor, and how light the command line is."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_help_is_fast_and_complete():
    """Measured in processor time, so that a busy machine does not decide."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "genkit", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
    for command in ("generate", "models", "methods", "families", "recipes", "inspect", "doctor"):
        assert command in done.stdout
    assert min(seconds) <= 1.0


def test_the_command_line_imports_nothing_heavy():
    heavy = ("torch", "diffusers", "transformers", "triton", "gradio", "numpy", "PIL", "av")
    done = python(f"import sys, genkit.cli.main; print([name for name in {heavy!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_command_has_help(call):
    for command in ("generate", "models", "methods", "families", "recipes", "inspect", "doctor"):
        code, out, _ = call(command, "--help")
        assert code == 0
        assert "--json" in out


def test_nothing_shows_the_help(call):
    code, out, _ = call()
    assert code == 0
    assert "Usage: genkit" in out


def test_unknown_commands_are_one_line(call):
    code, out, err = call("generat")
    assert (code, out) == (2, "")
    assert err.startswith("genkit: error: ") and len(err.splitlines()) == 1


def test_generate_has_a_flag_for_every_setting(call):
    from genkit.pipelines.settings import GenerateSettings

    _, shown, _ = call("generate", "--help")
    for name in GenerateSettings.field_names():
        assert re.search(f"--{name.replace('_', '-')}[ ,]", shown), name


def test_models_lists_and_checks_folders(call, tiny_wan, tmp_path):
    code, out, _ = call("models", tiny_wan, "--json")
    entry = json.loads(out)["models"][0]
    assert code == 0
    assert (entry["name"], entry["pipeline"], entry["defaults"]["steps"]) == ("tiny-wan", "WanPipeline", 2)
    code, out, _ = call("models", tiny_wan)
    assert code == 0 and "WanPipeline" in out
    assert entry["checksums"] == "unknown"
    assert call("models")[0] == 0
    broken = shutil.copytree(tiny_wan, tmp_path / "broken")
    shutil.rmtree(broken / "scheduler")
    code, _, err = call("models", broken)
    assert code == 1 and "no part 'scheduler'" in err
    assert call("models", tmp_path / "none")[0] == 1


def test_methods_lists_all_and_one(call):
    code, out, _ = call("methods", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)["methods"]}
    assert code == 0
    assert {"radial", "neighborhood"} <= set(listed)
    code, out, _ = call("methods", "radial")
    assert code == 0
    assert "block_size" in out and "Radial Attention" in out
    code, _, err = call("methods", "radiall")
    assert code == 2 and "did you mean 'radial'" in err
    assert "neighborhood" in call("methods")[1]


def test_families_lists_the_known_models(call):
    code, out, _ = call("families", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)["families"]}
    assert code == 0
    assert "WanPipeline" in listed["Wan"]["pipelines"]
    assert listed["Wan"]["roles"] == ["self", "cross"]
    assert {"radial", "neighborhood"} <= set(listed["Wan"]["methods"])
    assert listed["SANA-Video"]["unserved"]["self"] and json.loads(out)["out_of_scope"]["PriorTransformer"]
    code, out, _ = call("families")
    assert code == 0 and "WanVACETransformer3DModel" in out and "PriorTransformer" in out and "no token grid" in out
    assert out.index(" video") < out.index("Wan") < out.index(" image") < out.index("Flux")


@pytest.mark.parametrize("name", ["wan", "WanVACETransformer3DModel", "WanPipeline"])
def test_one_family_in_full(call, name):
    code, out, _ = call("families", name)
    assert code == 0 and out.startswith("Wan") and "branches: cond, uncond" in out and "radial" in out
    assert [entry["name"] for entry in json.loads(call("families", name, "--json")[1])["families"]] == ["Wan"]


@pytest.mark.parametrize(("name", "said"), [("Wann", "did you mean 'Wan'"), ("UNet1DModel", "computes its softmax")])
def test_a_family_that_is_none(call, name, said):
    code, _, err = call("families", name)
    assert code == 2 and said in err


def test_a_family_that_is_none_is_refused_in_a_line_that_can_be_read(call):
    for more in ((), ("--tasks",)):
        code, _, err = call("families", "nope", *more)
        assert code == 2 and "genkit families lists them" in err and len(err) < 200
    assert "did you mean 'FluxPipeline'" in call("families", "fluxpipelin")[2]


def test_a_dry_run_of_several_outputs_says_whose_settings_it_shows(call):
    asked = ("generate", "a red circle", "-m", "toy-image", "--seed", "3", "--dry-run")
    code, out, _ = call(*asked, "--num-videos", "2")
    assert code == 0 and out.count("would write") == 2 and "settings that the first of 2 files will carry" in out
    assert "will carry" not in call(*asked)[1]


def test_methods_by_family(call):
    code, out, _ = call("methods", "--matrix")
    assert code == 0 and "Qwen-Image" in out and "sliding_window on " in out and "dual=true" in out
    code, out, _ = call("methods", "radial", "--matrix", "--json")
    cells = json.loads(out)["matrix"]
    assert code == 0 and {cell["row"]["method"] for cell in cells} == {"radial"} and len(cells) >= 10
    assert next(cell["roles"] for cell in cells if cell["family"] == "Flux") == ["joint"]


def test_recipes_are_listed_with_origins(call):
    code, out, _ = call("recipes")
    assert code == 0 and "wan2.1-14b-radial" in out and "genkit recipes NAME" in out
    code, out, _ = call("recipes", "wan2.2-a14b-radial")
    assert code == 0 and "denoisers=2" in out and "the authors' code" in out and "radial.decay_factor" in out
    code, out, _ = call("recipes", "sd1.5-agent", "--json")
    (entry,) = json.loads(out)["recipes"]
    assert entry["parts"][0]["settings"]["agents"] == "merge" and entry["match"]["config"]["cross_attention_dim"] == 768
    assert {value["origin"] for value in entry["values"]} == {"code"}
    code, _, error = call("recipes", "nope")
    assert code == 2 and error.count("\n") == 1 and "wan2.1-14b-radial" in error


def test_inspect_draws_and_counts(call):
    from PIL import Image

    arguments = ["inspect", "neighborhood", "--attention-args", "size=1x3x3", "--grid", "2x6x6"]
    code, out, _ = call(*arguments, "-o", "mask.png", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["tokens"], result["grid"]) == (72, [2, 6, 6])
    assert result["density"]["computed"] == pytest.approx(9 / 72)
    assert result["density"]["executed"] >= result["density"]["computed"]
    cpu, gpu = result["plans"]
    assert (cpu["kind"], gpu["kind"], gpu["block_q"]) == ("cpu", "cuda", 128)
    assert cpu["visible"] == gpu["visible"] == result["density"]["computed"]
    assert cpu["executed"] == result["density"]["executed"] and gpu["arrangement"].startswith("blocks of 128 queries")
    picture = np.asarray(Image.open("mask.png"))
    assert picture.ndim == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    code, out, _ = call(*arguments)
    assert code == 0
    assert out.startswith("neighborhood-2x6x6.png") and "12.5% of pairs wanted" in out
    assert "cpu: tiles" in out and "cuda: blocks of 128 queries" in out


def test_inspect_takes_the_grid_from_a_model(call, tiny_wan):
    code, out, _ = call("inspect", "radial", "--model", tiny_wan, "--num-frames", 9, "--height", 64, "--json")
    assert code == 0
    assert json.loads(out)["grid"] == [3, 4, 3]


def test_inspect_refuses_what_it_cannot_draw(call, tiny_wan):
    Path("mask.png").write_bytes(b"mine")
    for arguments, text in (
        (["radial"], "either --grid"),
        (["radial", "--grid", "2x6"], "--grid"),
        (["radial", "--grid", "2x6x6", "--height", "3"], "go with --model"),
        (["radial", "--grid", "999x99x99"], "at most"),
        (["radial", "--grid", "2x6x6", "-o", "mask.jpg"], ".png"),
        (["radial", "--grid", "2x6x6", "-o", "mask.png"], "--force"),
        (["radial", "--model", tiny_wan, "--height", "33"], "multiples of 16"),
        (["nope", "--grid", "2x6x6"], "attention method"),
        (["radial", "--grid", "2x6x6", "--attention-args", "x=1"], "radial"),
    ):
        code, out, err = call("inspect", *arguments)
        assert (code, out) == (2, ""), arguments
        assert text in err and len(err.splitlines()) == 1
    assert Path("mask.png").read_bytes() == b"mine"
    assert sorted(path.name for path in Path().iterdir()) == ["mask.png"]


def test_doctor_tells_what_is_there(call, monkeypatch, tiny_wan):
    code, out, _ = call("doctor", "--json")
    report = json.loads(out)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert (code, report["ok"]) == (0, True)
    assert findings["libx264"]["state"] == "ok"
    assert findings["reference"]["state"] == "ok"
    assert all(finding["detail"] for finding in report["findings"])


def test_doctor_finds_damaged_models(call, monkeypatch, tiny_wan, tmp_path):
    from genkit import models

    copy = shutil.copytree(tiny_wan, tmp_path / "m")
    models.write_checksums(copy)
    monkeypatch.setattr(models, "shipped", lambda: {"m": copy})
    assert call("doctor")[0] == 0
    (copy / "genkit.json").write_text("{}")
    code, out, _ = call("doctor", "--json")
    found = next(finding for finding in json.loads(out)["findings"] if finding["topic"] == "model")
    assert code == 1
    assert found["state"] == "broken" and "genkit.json" in found["detail"]
