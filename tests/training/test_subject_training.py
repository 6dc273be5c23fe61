"""Reference attention trained beside a frozen motion module: what is drawn, what is learned, what is written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import genkit
from genkit.attention.reference.masks import box_mask, grid_mask, reweighted_loss
from genkit.errors import UsageError
from genkit.training.data.world.boxes import SubjectPool
from genkit.training.data.world.clips import ClipSize
from genkit.training.engine.curriculum import Stage
from genkit.training.tasks.run import main
from genkit.training.tasks.subject import SubjectTask
from genkit.training.toys.video.model import sizes
from genkit.world.vocabulary import SHAPES

SIZE = ClipSize(5, 64, 64)
STAGES = (Stage(0.0, sizes((5, 64, 64, 1.0))),)


@pytest.fixture
def model(tiny_wan, tmp_path):
    """The tiny Wan folder with a motion module whose projections are open."""
    folder = shutil.copytree(tiny_wan, tmp_path / "model")
    with genkit.patch(genkit.load(str(folder)), genkit.MotionBoxes(width=4, rank=3)) as patch:
        tiny.open_projections(patch.weights)
        patch.weights.save(folder / "motion_boxes.safetensors")
    return folder


@pytest.fixture
def make(model):
    def make(**changes):
        pipeline = genkit.load(str(model), "float32", "cpu")
        pool = SubjectPool(pipeline.vae, np.random.default_rng(0))
        module = genkit.MotionBoxes(width=4, rank=3, weights=str(model / "motion_boxes.safetensors"))
        return SubjectTask(pipeline, pool, module, STAGES, rank=2, **changes)

    return make


def test_the_command_writes_the_references_weights_alone(model, tmp_path, capsys):
    command = ["reference", "--model", str(model), "--tokens", "100", "--rank", "2", "--measure", "0", "--lr", "0.02"]
    command += ["--steps", "2", "--sample-minutes", "0"]
    assert main("test", [*command, "--folder", str(tmp_path / "a")]) == 0
    assert "beside the motion module" in capsys.readouterr().out
    found = load_file(tmp_path / "a" / "reference.safetensors")
    assert found and all(name.startswith("reference/") for name in found)
    assert all(table.dtype == torch.float16 for table in found.values())
    assert json.loads((tmp_path / "a" / "training.json").read_text())["method"] == "reference"
    assert main("test", [*command, "--folder", str(tmp_path / "b"), "--boxes-weights", "none"]) == 0
    assert "beside the motion module" not in capsys.readouterr().out
    assert load_file(tmp_path / "b" / "reference.safetensors").keys() == found.keys()
    assert main("test", [*command, "--folder", str(tmp_path / "c"), "--boxes-weights", "gone.safetensors"]) == 1
    assert "--boxes-weights: gone.safetensors does not exist" in capsys.readouterr().err


def test_the_reference_learns_and_the_motion_module_stays(make):
    task = make(boxed=1.0)
    batch = task.draw(SIZE, 4, np.random.default_rng(1))
    before = {name: value.clone() for name, value in task.weights.named_weights().items()}
    optimizer = torch.optim.Adam([each for each in task.parameters() if each.requires_grad], lr=0.003)
    losses = []
    for _ in range(4):
        loss = task(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in task.weights.named_weights().items():
        # nobody reads the last layer's queries of a reference
        stays = name.startswith("motion_boxes/") or "/1/attn1.changes.q" in name
        assert torch.equal(value, before[name]) == stays, name
    assert {"overlap", "object", "colour"} <= task.probe().keys()
    task.patch.remove()


@pytest.mark.parametrize("boxed", [0.0, 1.0])
def test_the_loss_is_that_of_the_paper_and_blends_with_what_the_model_answers(make, boxed):
    """Untrained the term is zero, so the model's prediction and its answer are those without a reference."""
    task = make(boxed=boxed)
    batch = task.draw(SIZE, 4, np.random.default_rng(1))
    assert batch.told == bool(boxed) and not torch.equal(batch.named, batch.text)
    losses = {}
    for share in (0.0, 0.25, 1.0):
        task.taught = share
        with torch.no_grad():
            losses[share] = task(batch).item()
            assert (task.track.boxes is None) == (not boxed)
            made, answer = task.predict(batch), task.answers(batch)
        assert not torch.equal(made, answer)
        boxes = torch.stack([sample.boxes for sample in batch.samples]).tolist()
        shape = tuple(batch.noisy.shape[2:])
        mask = torch.stack([grid_mask(box_mask(rows, *shape[1:]), shape).view(1, *shape) for rows in boxes])
        target = (1 - share) * batch.target + share * answer
        assert losses[share] == pytest.approx(reweighted_loss(made, target, mask).item(), rel=1e-5)
    task.taught, batch.named = 1.0, batch.text
    with torch.no_grad():
        assert task(batch).item() == 0  # the same words, no term: the model is its own teacher
    task.patch.remove()


def test_the_answer_is_without_references(make):
    task = make(boxed=1.0)
    batch = task.draw(SIZE, 4, np.random.default_rng(1))
    with torch.no_grad():
        task(batch)
        answer, made = task.answers(batch), task.predict(batch)
        tiny.open_projections(task.weights)
        task(batch)
        assert torch.equal(task.answers(batch), answer) and not torch.allclose(task.predict(batch), made, atol=1e-5)
    task.patch.remove()


def test_samples_have_a_picture_of_their_object_which_captions_leave_out(model):
    pool = SubjectPool(genkit.load(str(model)).vae, np.random.default_rng(0), side=64)
    rng = np.random.default_rng(1)
    samples = pool.draw(SIZE, 6)
    for sample in samples:
        assert sample.boxes.shape == (5, 4) and sample.reference.shape == (sample.latents.shape[0], 1, 8, 8)
        words, actor = pool.mute_caption(sample, rng).split(), sample.scene.actors[0]
        assert sample.scene.background in words and not set(words) & set(SHAPES)
        assert actor.colour not in words and actor.colour in pool.caption(sample, rng).split()
    assert not torch.equal(samples[0].reference, samples[1].reference)


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        ("toy-image", {"taught": 0.5}, "are for models of video, and toy-image makes pictures"),
        ("toy-image", {"boxes_weights": "b.safetensors"}, "are for models of video, and toy-image makes pictures"),
        ("toy-video", {"boxes_weights": "none", "taught": 0.5}, "--taught goes with a motion module"),
    ],
)
def test_options_of_a_motion_module_are_refused_without_one(model, given, told):
    from types import SimpleNamespace

    from genkit.training.tasks.reference import build

    options = SimpleNamespace(**{"model": model, "boxes_weights": None, "taught": None, "rank": 2} | given)
    with pytest.raises(UsageError, match=told):
        build(options, genkit.load(model, "float32", "cpu"), np.random.default_rng(0))
