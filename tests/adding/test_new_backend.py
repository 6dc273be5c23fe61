"""The worked example "A new backend" of CONTRIBUTING.md, done as it is written: no line of the package is changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED_BLOCK = re.compile(r"^`([\w/.-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SCRIPT = """
import json, runpy, sys
import torch
import genkit.kernels.block_sparse.impl as room
place = sys.argv[1]
room.__path__.append(f"{place}/genkit/kernels/block_sparse/impl")
from genkit import kernels
from genkit.cli import doctor
from genkit.errors import GenkitError

q, long = torch.zeros(1, 8, 1, 16), torch.zeros(1, 5000, 1, 16)
plan, far = kernels.BlockPlan.dense(8, 8), kernels.BlockPlan.dense(5000, 5000)
try:
    kernels.block_sparse_attention(long, long, long, far, backend="eager")
    refused = None
except GenkitError as error:
    refused = str(error)
done = {
    "names": kernels.backends(),
    "runs": kernels.why_not("eager", q, q, q, plan),
    "too long": kernels.why_not("eager", long, long, long, far),
    "refused": refused,
    "doctor": {finding.name: finding.state for finding in doctor.backends()},
}
test = runpy.run_path(f"{place}/tests/kernels/block_sparse/test_eager.py")
test["test_eager_equals_the_reference_in_outputs_and_gradients"]()
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The files of the example in a folder of their own, and what the package then says of its backend."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## A new backend\n")[2].partition("\n## ")[0]
    place = tmp_path_factory.mktemp("adding")
    for name, text in dict(NAMED_BLOCK.findall(section)).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place)], capture_output=True, text=True, env=environment, cwd=place
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_backend_is_found_last_where_it_is_not_for_auto(done):
    assert done["names"] == ["cpu", "triton", "flex", "reference", "eager", "flex_flash", "flex_tma", "triton_int8"]


def test_why_not_and_the_refusal_give_its_own_reason(done):
    assert done["runs"] is None and "5000 tokens exceed 4096" in done["too long"]
    assert done["too long"] in done["refused"]


def test_doctor_lists_it(done):
    assert done["doctor"]["eager"] == "ok"
