"""The worked example "Something new to train" of CONTRIBUTING.md, done as it is written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_wan import build_tiny_wan

from genkit.training import tasks
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.tasks.run import kinds, main

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "genkit" / "models"
NAMED_BLOCK = re.compile(r"^`([\w/.-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files of the example, which the room of tasks is told of."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Something new to train\n")[2].partition("\n## ")[0]
    blocks = NAMED_BLOCK.findall(section)
    assert [name for name, _ in blocks] == ["genkit/training/tasks/answer_scale.py"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "genkit/training/tasks")])
    yield tmp_path
    sys.modules.pop("genkit.training.tasks.answer_scale", None)


def test_one_file_is_found_trained_resumed_and_saved(place):
    assert kinds()["answer_scale"].families == kinds()["agent"].families
    model = build_tiny_wan(place / "tiny-wan")
    command = [
        "answer_scale",
        "--model",
        str(model),
        "--folder",
        str(place / "run"),
        "--tokens",
        "100",
        "--measure",
        "2",
    ]
    for steps in ("2", "3"):
        assert main("test", [*command, "--steps", steps, "--gradient-accumulation-steps", "2"]) == 0
    state = load_checkpoint(place / "run" / "weights" / "checkpoint.pt")
    assert state["step"] == 3 and state["module"].keys() == {"scale"}
    scale = load_file(place / "run" / "answer_scale.safetensors")["scale"]
    assert scale.equal(state["ema"]["scale"]) and (scale != 1).any()
    facts = json.loads((place / "run" / "training.json").read_text())
    assert facts["steps"] == 3 and facts["loss trained"] != facts["loss untrained"]


def test_a_task_that_takes_checkpoints_only_says_so(place, capsys):
    model, finished = build_tiny_wan(place / "tiny-wan"), MODELS / "toy-video" / "reference.safetensors"
    command = ["answer_scale", "--model", str(model), "--folder", str(place / "run"), "--steps", "1"]
    assert main("test", [*command, "--start-from", str(finished)]) == 2
    told = capsys.readouterr().err
    assert "--start-from" in told and "checkpoint.pt" in told
