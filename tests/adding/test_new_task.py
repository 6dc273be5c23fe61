"""The worked example "A new task" of CONTRIBUTING.md, done as it is written: no line of the package is changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_wan import build_tiny_wan

ROOT = Path(__file__).resolve().parents[2]
NAMED_BLOCK = re.compile(r"^`([\w/.-]+)`:\n\n(?:<!--[^\n]*-->\n)?```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SCRIPT = """
import contextlib, io, json, runpy, sys
from pathlib import Path
import genkit.pipelines.tasks as room
place, model = sys.argv[1:]
room.__path__.append(f"{place}/genkit/pipelines/tasks")
from genkit.cli.main import main

def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

asked = ("mirror", "a red circle", "--model", model, "--seed", "3", "--mirror", "flat")
done = {
    "all": call("--help"),
    "help": call("mirror", "--help"),
    "dry": call(*asked, "--dry-run", "--json"),
    "wrong": call(*asked, "--mirror", "round"),
    "foreign": call(*asked, "--attention", "radial"),
    "made": call(*asked, "-o", "one.gif", "--json"),
    "again": call("mirror", "--from", "one.gif", "-o", "two.gif"),
    "other": call("generate", "--from", "one.gif", "-o", "three.gif"),
}
test = runpy.run_path(f"{place}/tests/pipelines/tasks/test_mirror.py")
test["test_halves_are_mirror_images"](Path(model))
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The files of the example in a folder of their own, and what the commands of its task then do."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## A new task\n")[2].partition("\n## ")[0]
    blocks = dict(NAMED_BLOCK.findall(section))
    place = tmp_path_factory.mktemp("adding")
    for name, text in blocks.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    model = build_tiny_wan(place / "tiny-wan")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), str(model)], capture_output=True, text=True, cwd=place,
        env=environment, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return {"blocks": blocks, "place": place, **json.loads(ran.stdout.splitlines()[-1])}


def test_the_example_is_one_file_one_test_and_one_page(done):
    assert list(done["blocks"]) == [
        "genkit/pipelines/tasks/mirror.py", "tests/pipelines/tasks/test_mirror.py", "docs/tasks/mirror.md"
    ]  # fmt: skip


def test_its_command_and_its_settings_are_in_the_help(done):
    assert "mirror" in done["all"]["out"] and "its mirror image" in done["all"]["out"]
    assert "--mirror " in done["help"]["out"] and "How the mirror stands" in done["help"]["out"]
    assert "--steps" in done["help"]["out"] and "--attention" not in done["help"]["out"]


def test_a_dry_run_and_wrong_settings(done):
    planned = json.loads(done["dry"]["out"])["outputs"][0]
    assert (done["dry"]["code"], planned["settings"]["mirror"], planned["settings"]["seed"]) == (0, "flat", 3)
    assert done["wrong"]["code"] == 2 and "--mirror: got 'round', allowed: upright, flat" in done["wrong"]["err"]
    assert done["foreign"]["code"] == 2 and "--attention" in done["foreign"]["err"]


def test_outputs_carry_a_record_that_repeats_them(done):
    made = json.loads(done["made"]["out"])["outputs"][0]
    record = json.loads((done["place"] / "one.gif.json").read_text())
    assert record["command"] == "mirror" and record["settings"] == made["settings"]
    assert done["again"]["code"] == 0
    assert (done["place"] / "one.gif").read_bytes() == (done["place"] / "two.gif").read_bytes()
    assert done["other"]["code"] == 2 and "was made by genkit mirror" in done["other"]["err"]
