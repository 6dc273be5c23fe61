"""The worked example "A new method" of CONTRIBUTING.md, done as it is written: no line of the package is changed."""

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
import contextlib, io, json, sys
import genkit.attention
place, model = sys.argv[1:]
genkit.attention.__path__.append(f"{place}/genkit/attention")
import pytest
from genkit.cli.main import main

def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

asked = ("generate", "a red circle", "--model", model, "--seed", "3", "--steps", "1", "--attention", "rows")
done = {
    "class": [genkit.Rows.__name__, genkit.Rows(reach=2).describe()],
    "listed": call("methods", "--json"),
    "drawn": call("inspect", "rows", "--attention-args", "reach=0", "--grid", "3x6x4", "-o", "rows.png", "--json"),
    "wrong": call(*asked, "--attention-args", "reach=-1", "--dry-run"),
    "made": call(*asked, "--attention-args", "reach=0", "-o", "one.gif", "--json"),
}
with contextlib.redirect_stdout(io.StringIO()) as told:
    done["test"] = int(pytest.main(["-q", "-p", "no:cacheprovider", f"{place}/tests/attention/test_rows.py"]))
print(told.getvalue(), file=sys.stderr)
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The files of the example in a folder of their own, and what the commands then do."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## A new method\n")[2].partition("\n## A new ")[0]
    blocks = dict(NAMED_BLOCK.findall(section))
    place = tmp_path_factory.mktemp("adding")
    for name, text in blocks.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    model = build_tiny_wan(place / "tiny-wan")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "attention")])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), str(model)], capture_output=True, text=True, cwd=place, timeout=600,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return {"blocks": blocks, "place": place, "err": ran.stderr, **json.loads(ran.stdout.splitlines()[-1])}


def test_the_example_is_one_folder_one_test_and_one_page(done):
    assert list(done["blocks"]) == [
        "genkit/attention/rows/__init__.py", "genkit/attention/rows/method.py", "tests/attention/test_rows.py",
        "docs/methods/rows.md",
    ]  # fmt: skip


def test_its_class_and_its_settings_are_listed(done):
    assert done["class"] == ["Rows", "rows(reach=2)"]
    entry = next(entry for entry in json.loads(done["listed"]["out"])["methods"] if entry["name"] == "rows")
    assert entry["summary"].startswith("Every grid token sees the rows near its own")
    assert [field["name"] for field in entry["fields"]] == ["reach", "length_scale", "bias", "weights"] and entry[
        "fields"
    ][0]["help"]


def test_it_is_drawn_with_its_density(done):
    drawn = json.loads(done["drawn"]["out"])
    assert drawn["density"]["computed"] == pytest.approx(1 / 6) and (done["place"] / "rows.png").stat().st_size > 1000


def test_a_model_runs_with_it_and_wrong_settings_are_refused(done):
    assert done["wrong"]["code"] == 2 and "rows.reach" in done["wrong"]["err"] and "got -1" in done["wrong"]["err"]
    assert done["made"]["code"] == 0, done["made"]["err"]
    report = json.loads(done["made"]["out"])["outputs"][0]["attention"]
    assert report["ran"] > 0 and report["density"]["computed"] < 1


def test_its_test_passes_as_it_is_written(done):
    assert done["test"] == 0, done["err"]
    assert "6 passed" in done["err"]
