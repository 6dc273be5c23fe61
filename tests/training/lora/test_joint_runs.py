"""Runs on several tasks: a dry run tells them, a stopped run goes on with the same draws, bad ones begin nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genkit.cli.train import lines_of
from genkit.errors import UsageError
from genkit.media.files import write_media
from genkit.training.lora.dry_run import described
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.run import Run
from genkit.training.lora.settings import LoraSettings

TASKS = {"t2av": 1, "i2av": 1, "av2av": 1, "t2v": 1, "a2v": 2, "v2a": 2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames = np.full((9, 64, 64, 3), 40, np.uint8)
    frames[:, 16:48, 8:40] = 200
    tone = np.sin(np.arange(16000 * 9 // 8) / 12).astype(np.float32)[:, None] * 0.5
    write_media(folder / "0.mp4", frames, 8, audio=tone, sample_rate=16000)
    (folder / "0.txt").write_text("a red circle moves right")
    return folder


def settings(clips, output, **more):
    given = {
        "model": "toy-av", "data": str(clips), "output": str(output), "resolution": "64x64", "num_frames": 9,
        "max_train_steps": 4, "rank": 2, "learning_rate": 0.01, "checkpointing_steps": 2, "tasks": TASKS,
        "cache_dir": str(clips.parent / f"{clips.name}-cache"), "target_modules": ["to_q"], **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


def test_a_dry_run_tells_every_task_with_its_share(clips, tmp_path):
    plan = LoraPlan.of(settings(clips, tmp_path / "lora", tasks="t2av=3,a2v=1,v2a=0"))
    found = json.loads(json.dumps(described(plan, None)))
    assert {name: task["share"] for name, task in found["tasks"].items()} == {"t2av": 0.75, "a2v": 0.25}
    lines = list(lines_of(found))
    assert "task t2av: text to video and sound, 75.0% of the samples" in lines
    assert "task a2v: sound to video, 25.0% of the samples" in lines and not any("v2a" in line for line in lines)
    assert not described(LoraPlan.of(settings(clips, tmp_path / "lora", tasks={})), None)["tasks"]
    assert not (tmp_path / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_a_stopped_run_goes_on_with_the_same_draws_and_no_other_tasks(clips, tmp_path):
    Run.open(settings(clips, tmp_path / "whole")).go()
    Run.open(settings(clips, tmp_path / "parts", max_train_steps=2)).go()
    with pytest.raises(UsageError, match="tasks"):
        LoraPlan.of(settings(clips, tmp_path / "parts", resume_from_checkpoint="latest", tasks={"a2v": 1}))
    Run.open(settings(clips, tmp_path / "parts", resume_from_checkpoint="latest")).go()
    whole, parts = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("whole", "parts"))
    assert whole and all(torch.equal(value, parts[name]) for name, value in whole.items())
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    told = {name.removeprefix("loss ") for row in rows for name in row if name.removeprefix("loss ") in TASKS}
    assert told  # every step logs the loss of the task it drew


def test_tasks_that_the_data_or_the_model_cannot_do_begin_nothing(clips, tmp_path, tiny_wan):
    silent = tmp_path / "silent"
    silent.mkdir()
    write_media(silent / "0.mp4", np.full((9, 64, 64, 3), 90, np.uint8), 8)
    (silent / "0.txt").write_text("a red circle moves right")
    for given, text in (
        ({"tasks": "t2vv=1"}, "task of --tasks: got 't2vv', allowed: t2av"),
        ({"tasks": {"a2v": 0}}, "a weight above 0 for one task at least"),
        ({"model": str(tiny_wan)}, "WanPipeline is not trained by tasks; allowed: models of video and sound"),
        (
            {"data": str(silent), "missing_audio": "video"},
            "--tasks t2av, i2av, av2av, a2v, v2a need sound, which these lack: 0.mp4",
        ),
        (
            {"num_frames": 1, "missing_audio": "video", "tasks": "t2v=1,i2v=1"},
            "--tasks i2v need more than one frame, which these lack: 0.mp4",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            LoraPlan.of(settings(clips, tmp_path / "lora", **given))
        assert text in str(caught.value), str(caught.value)
        assert not (tmp_path / "lora").exists()
    plan = LoraPlan.of(settings(silent, tmp_path / "lora", missing_audio="video", tasks={"t2v": 1, "i2v": 1}))
    assert plan.tasks == {"t2v": 0.5, "i2v": 0.5}
