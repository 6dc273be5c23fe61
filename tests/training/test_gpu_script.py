"""The script that trains the shipped models side by side prints commands that the training scripts take."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed(*models: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "train_on_gpu.sh"), *models],
        env={**os.environ, "PRINT": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_every_printed_command_is_one_that_its_script_takes():
    done = printed(MINUTES="10", FOLDER="somewhere")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [Path(line[1]).stem for line in lines] == [f"train_toy_{name}" for name in ("video", "image", "dit", "av")]
    for _, script, *arguments in lines:
        name = Path(script).stem.removeprefix("train_toy_")
        making = importlib.import_module(f"genkit.training.toys.{name}.run").MAKING
        parser = argparse.ArgumentParser(exit_on_error=False)
        making.add_arguments(parser)
        options = parser.parse_args(arguments)
        assert options.weights == f"toy-{name}" and options.folder == Path("somewhere") / f"toy-{name}"
        assert options.minutes * making.shares[making.main] == pytest.approx(10, rel=1e-3)


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_an_unknown_model_is_refused():
    done = printed("toy-car")
    assert done.returncode == 2
    assert "got toy-car, allowed: toy-video" in done.stderr
