"""``--check`` and ``--check-limit``: they need a method, warn or stop by layer, and change no output."""

from __future__ import annotations

import json
import re

import pytest

from genkit.cli.main import main

WORDS = ["a red circle", "--steps", "2", "--seed", "3"]
SPARSE = ["--attention", "neighborhood", "--attention-args", "size=1x1x1"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["generate", *WORDS, "--model", str(tiny_wan), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_far_layer_is_told_and_the_output_is_the_same(cli, tmp_path):
    assert cli(*SPARSE, "-o", "plain.webp")[0] == 0
    code, out, err = cli(*SPARSE, "--check", "--json", "-o", "checked.webp")
    assert code == 0 and (tmp_path / "plain.webp").read_bytes() == (tmp_path / "checked.webp").read_bytes()
    report = json.loads(out)
    checks = report["outputs"][0]["attention"]["checks"]
    assert checks and all({"site", "error", "step", "worst_head"} <= set(each) for each in checks)
    far = [each for each in checks if each["error"] > 0.7]
    assert bool(far) == any("first-step check: layer" in line for line in report["warnings"])


def test_a_limit_stops_the_run_with_layer_and_error_and_leaves_nothing(cli, tmp_path):
    code, _, err = cli(*SPARSE, "--check-limit", "0.0001", "-o", "clip.webp")
    assert code == 1 and re.search(r"error: layer blocks\.\d\.attn1: .* from dense attention at step 0", err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--check"], ["--check-limit", "0.5"]])
def test_a_check_needs_a_method(cli, words):
    code, _, err = cli(*words, "-o", "clip.webp")
    assert code == 2 and "needs --attention NAME or --recipe FILE" in err


@pytest.mark.parametrize("value", ["0", "-1", "much", "nan"])
def test_wrong_limits_are_refused(cli, value):
    code, _, err = cli(*SPARSE, "--check-limit", value, "-o", "clip.webp")
    assert code == 2 and "--check-limit" in err
