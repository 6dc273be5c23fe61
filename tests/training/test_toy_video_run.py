"""Making toy-video from nothing with a budget of seconds: every stage runs, resumes and gives a real pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_toy_video.py"


@pytest.mark.slow
def test_all_stages_give_a_pipeline(tmp_path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--minutes", "0.02", "--sample-minutes", "0"]
    for _ in range(2):
        subprocess.run([*command, "--tokens", "400", "--text-steps", "2"], check=True, capture_output=True)
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    frames = pipeline(
        "a red circle", height=64, width=64, num_frames=5, num_inference_steps=2, max_sequence_length=32
    ).frames
    assert frames.shape == (1, 5, 64, 64, 3)
    assert not [path for path in (tmp_path / "model").rglob("*.json") if str(tmp_path) in path.read_text()]
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert facts["steps"] >= 1 and facts["vae"]["steps"] >= 1 and facts["decoder"]["steps"] >= 1
    assert facts["answers"]["steps"] >= 1
    assert sum(path.stat().st_size for path in (tmp_path / "model").rglob("*")) < 20e6


def test_bad_options_are_one_line():
    result = subprocess.run([sys.executable, str(SCRIPT), "--minutes", "0"], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "--minutes: got '0', allowed: a number above 0" in line
