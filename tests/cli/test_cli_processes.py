"""One command as several processes: they share the outputs, which are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PROMPTS = [
    "a red circle on a blue background",
    "a green square on a white background",
    "a blue star on a black background",
]


def launched(count: int, *arguments: str, cwd) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, "-m", "genkit", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def settings(prompts, output, *more):
    small = ("--model", "toy-image", "--steps", "1", "--height", "64", "--width", "64", "--json")
    return ("generate", "--prompt-file", str(prompts), "-o", str(output), *small, *more)


def test_two_processes_write_the_files_of_one(prompts, tmp_path):
    """Also without a seed: the first process draws it for both."""
    two = launched(2, *settings(prompts, tmp_path / "two-%d.png"), cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    outputs = json.loads(two.stdout)["outputs"]
    assert [each["settings"]["prompt"] for each in outputs] == PROMPTS, "the first process tells all, in order"
    seeds = {each["settings"]["seed"] for each in outputs}
    assert len(seeds) == 1

    one = launched(1, *settings(prompts, tmp_path / "one-%d.png", "--seed", str(seeds.pop())), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    names = sorted(path.name for path in tmp_path.glob("two-*.png"))
    assert len(names) == len(PROMPTS)
    for name in names:
        pairs = [np.asarray(Image.open(tmp_path / each)) for each in (name, name.replace("two", "one"))]
        assert np.array_equal(*pairs), name


def test_an_output_that_is_there_stops_all_before_any_is_made(prompts, tmp_path):
    (tmp_path / "out-2.png").write_bytes(b"mine")
    done = launched(2, *settings(prompts, tmp_path / "out-%d.png"), cwd=tmp_path)
    assert done.returncode != 0
    assert "out-2.png" in done.stderr
    assert [path.name for path in tmp_path.glob("out-*")] == ["out-2.png"]
    assert (tmp_path / "out-2.png").read_bytes() == b"mine"
