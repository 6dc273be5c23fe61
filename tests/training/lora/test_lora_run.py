"""A LoRA from a folder of clips: the file, the base model, and going on from a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from memory import load
from safetensors import safe_open
from safetensors.torch import load_file

from genkit.errors import ArtifactError, UsageError
from genkit.lora.files import NAMED
from genkit.media.files import write_media
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.run import Run, train_lora
from genkit.training.lora.settings import LoraSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three clips with captions, 5 frames of 32 x 32."""
    folder = tmp_path_factory.mktemp("data")
    for index, level in enumerate((40, 120, 220)):
        frames = np.full((5, 32, 32, 3), level, np.uint8)
        frames[:, 8:24, 4 + 2 * index : 20] = 255 - level
        write_media(folder / f"{index}.mp4", frames, 8)
        (folder / f"{index}.txt").write_text("a red circle moves right")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def settings(tiny_wan, data, cache, output, **more):
    given = {
        "model": str(tiny_wan), "data": str(data), "output": str(output), "cache_dir": str(cache),
        "resolution": "32x32", "num_frames": 5, "max_train_steps": 4, "rank": 2, "lora_alpha": 4,
        "learning_rate": 0.01, "checkpointing_steps": 2, "train_batch_size": 2, "seed": 3, **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


def sampled(pipeline) -> torch.Tensor:
    return pipeline(
        "a red circle", height=32, width=32, num_frames=5, num_inference_steps=2, guidance_scale=1.0,
        max_sequence_length=16, output_type="latent", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_wan, data, cache, tmp_path_factory):
    """(output folder, the run) of four steps, its encoders kept."""
    output = tmp_path_factory.mktemp("trained") / "lora"
    run = Run.open(settings(tiny_wan, data, cache, output, use_ema=True, ema_decay=0.5))
    assert run.go() == output / NAMED
    return output, run


def test_the_file_makes_the_trained_models_picture_in_stock_diffusers(trained, tiny_wan):
    output, run = trained
    stock = WanPipeline.from_pretrained(str(tiny_wan), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    plain = sampled(stock)
    stock.load_lora_weights(str(output))
    with_file = sampled(stock)
    averages = load_checkpoint(output / "checkpoint-4" / "trainer.pt")["ema"]
    fresh = load(tiny_wan)
    fresh.transformer = run.adapter.model
    with torch.no_grad():
        for name, value in run.task.named_parameters():
            if value.requires_grad:
                value.copy_(averages[name])
    assert torch.allclose(sampled(fresh), with_file, atol=1e-5)
    assert not torch.allclose(plain, with_file, atol=1e-3)


def test_the_base_model_stays_bit_for_bit(trained, tiny_wan):
    _, run = trained
    before = load(tiny_wan).transformer.state_dict()
    model = run.adapter.model
    assert len(model.state_dict()) > len(before)
    run.adapter.remove()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_the_file_says_what_it_is(trained):
    output, run = trained
    with safe_open(output / NAMED, "pt") as file:
        facts = json.loads(file.metadata()["genkit"])
    assert facts["rank"] == 2 and facts["alpha"] == 4 and facts["steps"] == 4
    assert facts["dataset"] == run.samples.digest and facts["component"] == "transformer"


@pytest.mark.parametrize("more", [{}, {"use_ema": True, "lora_dropout": 0.3, "lr_scheduler": "cosine"}])
def test_a_stopped_run_ends_with_the_bits_of_an_unbroken_one(tiny_wan, data, cache, tmp_path, more):
    def run(name, **changes):
        return train_lora(settings(tiny_wan, data, cache, tmp_path / name, **more, **changes))

    whole = run("whole", max_train_steps=6)
    cut = settings(tiny_wan, data, cache, tmp_path / "parts", max_train_steps=6, **more)
    opened = Run.open(cut)
    calls = iter(range(5))
    batch = opened.samples.batch
    opened.samples.batch = lambda number, rank: batch(number + 0 * next(calls), rank)
    with pytest.raises(StopIteration):
        opened.go()
    parts = run("parts", max_train_steps=6, resume_from_checkpoint="latest")
    assert whole.read_bytes() == parts.read_bytes()
    logs = [
        [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()] for path in (whole, parts)
    ]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]] and len(logs[0]) == 6
    states = [load_checkpoint(path.parent / "checkpoint-6" / "trainer.pt") for path in (whole, parts)]
    for part in ("module", "ema"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


def test_going_on_with_other_settings_or_data_is_refused(trained, tiny_wan, data, cache, tmp_path):
    output, _ = trained

    def refused(match, folder=data, **changes):
        with pytest.raises(UsageError, match=match):
            again = {"use_ema": True, "ema_decay": 0.5, "resume_from_checkpoint": "latest", **changes}
            train_lora(settings(tiny_wan, folder, cache, output, **again))

    refused("rank was 2 and is 8", rank=8)
    refused("seed was 3 and is 4", seed=4)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("0.mp4", "0.txt", "1.mp4", "1.txt"):
        (other / name).write_bytes((data / name).read_bytes())
    refused("digest of files and captions was", folder=other)
    refused("allowed: .*|holds pytorch_lora", resume_from_checkpoint=None)


def test_a_dry_run_compares_with_the_checkpoint_that_it_would_go_on_from(trained, tiny_wan, data, cache, tmp_path):
    import shutil

    output = shutil.copytree(trained[0], tmp_path / "copy")

    def planned(**changes):
        more = {"use_ema": True, "ema_decay": 0.5, "resume_from_checkpoint": "latest", "max_train_steps": 9}
        return LoraPlan.of(settings(tiny_wan, data, cache, output, **{**more, **changes}))

    assert planned().begins == output / "checkpoint-4"
    for changes, words in (({"rank": 8}, "rank was 2 and is 8"), ({"target_modules": ["to_q"]}, "target_modules was")):
        with pytest.raises(UsageError, match=words):
            planned(**changes)
    # Weights that the file's own settings do not tell of.
    path = output / "checkpoint-4" / "trainer.pt"
    state = load_checkpoint(path)
    name = next(iter(state["module"]))
    torch.save({**state, "module": {**state["module"], name: torch.zeros(3, 3)}}, path)
    with pytest.raises(ArtifactError, match="has the shape"):
        planned()
    path.write_bytes(b"half")
    found = planned()
    assert found.begins == output / "checkpoint-2" and any("checkpoint-4 is broken" in line for line in found.notes())


def test_a_longer_budget_goes_on_and_few_checkpoints_stay(trained, tiny_wan, data, cache, tmp_path):
    import shutil

    output = shutil.copytree(trained[0], tmp_path / "copy")
    more = {"use_ema": True, "ema_decay": 0.5, "resume_from_checkpoint": "latest", "checkpoints_total_limit": 2}
    train_lora(settings(tiny_wan, data, cache, output, max_train_steps=8, **more))
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert load_file(output / NAMED).keys() == load_file(output / "checkpoint-8" / NAMED).keys()
    # A broken newest one is told, and the one before it taken.
    (output / "checkpoint-8" / "trainer.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match="checkpoint-8 is broken, the one before it is taken"):
        train_lora(settings(tiny_wan, data, cache, output, max_train_steps=8, **more))
    (output / "checkpoint-8" / "trainer.pt").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="checkpoint-8"):
        more["resume_from_checkpoint"] = str(output / "checkpoint-8")
        train_lora(settings(tiny_wan, data, cache, output, max_train_steps=8, **more))


def test_a_run_begins_with_the_file_of_another(trained, tiny_wan, data, cache, tmp_path):
    output, _ = trained
    run = Run.open(settings(tiny_wan, data, cache, tmp_path / "next", init_lora=str(output)))
    stored = load_file(output / NAMED)
    for path, pair in run.adapter.pairs().items():
        up, down = (stored[f"transformer.{path}.lora_{half}.weight"] for half in "BA")
        assert torch.allclose(pair.scale * pair.up @ pair.down, up @ down, atol=1e-6)
    with pytest.raises(UsageError, match="without strength"):
        Run.open(settings(tiny_wan, data, cache, tmp_path / "next", init_lora=f"{output}@0.5"))


@pytest.mark.slow
def test_kills_at_any_moment_change_no_bit(tiny_wan):
    command = [sys.executable, "-m", "benchmarks", "lora_kills", "--model", str(tiny_wan)]
    here = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [*command, "--kills", "6", "--steps", "10"], capture_output=True, text=True, timeout=240, cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert len(json.loads(done.stdout)["moments"]) == 6
