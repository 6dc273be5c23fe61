"""Training a patch's weights on a tiny frozen pipeline: the command, going on, files, gradients."""

from __future__ import annotations

import argparse
import json
import sys
import typing

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import genkit
from genkit.attention.registry import trained
from genkit.evaluation.toy_picture import PictureRequest
from genkit.evaluation.toy_reference import draw_cases
from genkit.pipelines.tasks.references.record import record_pictures
from genkit.training.data.world.boxes import BoxPool
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.data.world.pictures import PictureSize, squares
from genkit.training.data.world.references import ReferenceClips, ReferencePictures
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.tasks import reference
from genkit.training.tasks.agent import AgentTask
from genkit.training.tasks.base import Task, mean_loss
from genkit.training.tasks.reference import ReferenceTask
from genkit.training.tasks.run import kinds, main
from genkit.training.toys.video.model import sizes

SMALL = (Stage(0.0, sizes((5, 96, 96, 1.0))),)


def _load(tiny_wan):
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_command_trains_saves_and_goes_on(tiny_wan, tmp_path):
    before = {path: path.read_bytes() for path in tiny_wan.rglob("*.safetensors")}
    command = ["reference", "--model", str(tiny_wan), "--folder", str(tmp_path), "--tokens", "100", "--rank", "2"]
    command += ["--measure", "4", "--lr", "0.02", "--sample-minutes", "0.00001", "--gradient-accumulation-steps", "2"]
    assert main("test", [*command, "--steps", "2"]) == 0
    first = torch.load(tmp_path / "weights" / "checkpoint.pt", weights_only=True)
    assert first["step"] == 2
    assert main("test", [*command, "--steps", "4"]) == 0
    second = torch.load(tmp_path / "weights" / "checkpoint.pt", weights_only=True)
    name = next(key for key in second["module"] if key.endswith("out.weight"))
    assert second["step"] == 4 and first["module"][name].any()
    assert not torch.equal(first["module"][name], second["module"][name])
    probes = [json.loads(line) for line in (tmp_path / "weights" / "probe.jsonl").read_text().splitlines()]
    assert [row["step"] for row in probes] == [1, 2, 3, 4] and {"reference", "colour", "loss"} <= probes[0].keys()
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["steps"] == 4 and facts["method"] == "reference" and facts["loss trained"] > 0
    assert all(path.read_bytes() == content for path, content in before.items())

    pipeline = _load(tiny_wan)
    call = dict(height=64, width=64, num_frames=5, num_inference_steps=2, guidance_scale=2.0, output_type="latent",
                max_sequence_length=16)  # fmt: skip

    def run():
        return pipeline("moves right", generator=torch.Generator().manual_seed(0), **call).frames

    plain = run()
    pictures = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    method = trained("reference", tmp_path / "reference.safetensors")
    assert method.rank == 2 and method.form == "residual"
    with genkit.patch(pipeline, method) as patch:
        assert torch.equal(run(), plain)  # nothing recorded yet
        assert record_pictures(patch, pipeline, pictures, slots=16) == 2
        assert not torch.equal(run(), plain)
    assert torch.equal(run(), plain)


def test_a_step_changes_the_weights_and_lowers_the_loss_on_its_batch(tiny_wan):
    pipeline = _load(tiny_wan)
    pool = ReferenceClips(pipeline.vae, np.random.default_rng(0))
    task = ReferenceTask(pipeline, pool, rank=2, stages=SMALL)
    batch = task.draw(ClipSize(5, 96, 96), 4, np.random.default_rng(1))
    assert batch.text.shape[:2] == (4, 64) and batch.samples[0].reference.shape == (4, 1, 12, 12)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = task(batch)
        loss.backward()
        # every weight has a gradient, so that distributed training waits for none in vain
        assert all(parameter.grad is not None for parameter in task.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(task.state_dict()) == {f"weights.{name}" for name in task.weights.state_dict()}
    assert not any(parameter.requires_grad for parameter in pipeline.transformer.parameters())
    fixed = [mean_loss(task, ClipSize(5, 96, 96), 1, 4, seed=5) for _ in range(2)]
    assert fixed[0] == fixed[1] != mean_loss(task, ClipSize(5, 96, 96), 1, 4, seed=6)
    task.patch.remove()


def test_samples_carry_picture_and_boxes(tiny_wan):
    pool = ReferenceClips(_load(tiny_wan).vae, np.random.default_rng(2))
    samples = pool.draw(ClipSize(9, 96, 96), 3)
    for sample in samples:
        assert sample.boxes.shape == sample.latents.shape[1:] == (3, 12, 12)
        assert 0.02 < sample.boxes.mean() < 0.6 and sample.boxes.max() == 1
    assert pool.stored.keys() == {ClipSize(9, 96, 96)}


def test_references_are_trained_on_pictures_too(tiny_sd, tmp_path, monkeypatch):
    # two samples instead of eight after each step: they are drawn and judged alike
    monkeypatch.setattr(reference, "draw_cases", lambda split, _, request, seed: draw_cases(split, 2, request, seed))
    command = ["reference", "--model", str(tiny_sd), "--folder", str(tmp_path), "--tokens", "128", "--rank", "2"]
    command += ["--measure", "2", "--steps", "2", "--lr", "0.02", "--sample-minutes", "0.00001"]
    assert main("test", command) == 0
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["steps"] == 2 and facts["size"] == "96x96" and facts["loss trained"] != facts["loss untrained"]
    probe = json.loads((tmp_path / "weights" / "probe.jsonl").read_text().splitlines()[0])
    assert {"reference", "texture", "loss"} <= probe.keys()
    method = trained("reference", tmp_path / "reference.safetensors")
    assert method.rank == 2 and method.form == "residual"


def test_pictures_carry_reference_and_boxes(tiny_sd):
    pipeline = genkit.load(str(tiny_sd), "float32", "cpu")
    pool = ReferencePictures(pipeline.vae, np.random.default_rng(2))
    task = ReferenceTask(pipeline, pool, (Stage(0.0, squares((96, 1.0))),), PictureRequest(64, 64), rank=2)
    batch = task.draw(PictureSize(96, 96), 3, np.random.default_rng(1))
    for sample in batch.samples:
        height = sample.latents.shape[1]
        assert sample.boxes.shape == (1, height, height) and 0.02 < sample.boxes.mean() < 0.8
        assert sample.reference.shape == (4, height * 64 // 96, height * 64 // 96)
    before = task(batch)
    before.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    # what the model should answer is the noise, of which the noisy latents hold the share that the table names
    kept = pipeline.scheduler.alphas_cumprod[task.denoiser.objective.timesteps(batch.level)].view(-1, 1, 1, 1)
    clean = torch.stack([sample.latents for sample in batch.samples]).float()
    assert torch.allclose(kept.sqrt() * clean + (1 - kept).sqrt() * batch.target, batch.noisy, atol=1e-5)
    task.patch.remove()


def test_agents_learn_the_dense_model(tiny_wan):
    pipeline = _load(tiny_wan)
    task = AgentTask(pipeline, LatentPool(pipeline.vae, np.random.default_rng(0)), layers=None, stages=SMALL)
    batch = task.draw(ClipSize(5, 96, 96), 4, np.random.default_rng(1))
    with torch.no_grad():
        dense, agents = task.predict(batch, task.dense[0]), task.predict(batch)
    assert not torch.allclose(dense, agents, atol=1e-6)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = task(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    task.patch.remove()
    with torch.no_grad():
        assert torch.equal(task.predict(batch), dense)


def test_a_bias_learns_the_dense_model_and_is_used_from_its_file(tiny_wan, tmp_path, capsys):
    command = ["bias", "--model", str(tiny_wan), "--folder", str(tmp_path), "--tokens", "100", "--steps", "12"]
    settings = ["--attention-args", "size=3,bias=table:t=2:h=3:w=3", "--lr", "0.05", "--measure", "4"]
    assert main("test", [*command, *settings]) == 0, capsys.readouterr().err
    made = trained("neighborhood", tmp_path / "bias.safetensors")
    assert (made.size, made.bias) == (3, "table:t=2:h=3:w=3")
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["loss trained"] < facts["loss untrained"]
    with genkit.patch(_load(tiny_wan), made) as patched:
        assert all(parameter.any() for parameter in patched.weights.parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--attention", "agent"], "--attention: got 'agent', allowed: anchor_window, biased, block_select"),
        (["--attention-args", "bias=alibi"], "has no bias with weights"),
        (["--attention-args", "bias=nope"], "bias: got 'nope'"),
    ],
)
def test_a_method_without_a_learned_bias_is_refused(tiny_wan, given, words, capsys):
    assert main("test", ["bias", "--model", str(tiny_wan), *given]) == 2
    assert words in capsys.readouterr().err


#: Options with a number, and what each refuses.
NUMBERS = {
    "--minutes": ("0", "-1", "nan", "inf", "many"),
    "--tokens": ("5", "-3600", "3.5"),
    "--begin": ("-0.1", "1.1", "nan"),
    "--lr": ("0", "nan", "inf", "-1e-3"),
    "--gradient-accumulation-steps": ("0", "1.5"),
    "--seed": ("-1", "9" * 30),
    "--threads": ("0", "-2"),
    "--sample-minutes": ("-1", "nan"),
    "--steps": ("0", "-1"),
    "--measure": ("-1", "nan"),
    "--sparsity": ("0", "1.5", "nan"),
    "--penalty": ("-1", "inf"),
    "--mass": ("-1", "nan"),
    "--context-tokens": ("0",),
    "--window": ("0", "nan", "-1"),
    "--frames": ("0", "1.5"),
    "--whole-layers": ("-1", "half"),
    "--rank": ("0", "-3", "half"),
    "--width": ("0", "-3", "half"),
    "--taught": ("-0.1", "1.1", "nan"),
}


@pytest.mark.parametrize("name", sorted(kinds()))
def test_numbers_out_of_range_are_one_line_before_anything_is_loaded(name, capsys, monkeypatch):
    monkeypatch.setattr("genkit.training.tasks.kind.load_pipeline", None)
    parser = argparse.ArgumentParser()
    kinds()[name].making().add_arguments(parser)
    takes = {action.option_strings[0]: action for action in parser._actions if action.option_strings}
    numeric = {
        option for option, action in takes.items() if isinstance(action.default, (int, float)) and action.nargs != 0
    }
    assert numeric <= NUMBERS.keys()
    for option in NUMBERS.keys() & takes.keys():
        for given in NUMBERS[option]:
            assert main("test", [name, f"{option}={given}"]) == 2
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1
            assert f"argument {option}: got {given!r}, allowed: a" in err or f"argument {option}: got '9999" in err


@pytest.mark.parametrize("option", ["--output", "--folder"])
def test_a_folder_that_cannot_be_written_is_told_before_training(option, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("genkit.training.tasks.kind.load_pipeline", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for bad in ("file", "file/below"):
        assert main("test", ["layers", option, bad]) == 1
        assert f"error: cannot write into {bad}: Not a directory; choose another {option}" in capsys.readouterr().err


def test_recomputed_activations_leave_a_patch_the_same_gradients(tiny_wan):
    pipeline = _load(tiny_wan)
    task = AgentTask(pipeline, LatentPool(pipeline.vae, np.random.default_rng(0)), layers=None, stages=SMALL)
    batch = task.draw(ClipSize(5, 96, 96), 4, np.random.default_rng(1))
    with torch.no_grad():
        for parameter in task.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))

    def gradients():
        task.zero_grad()
        task(batch).backward()
        return [parameter.grad.clone() for parameter in task.parameters()]

    calls = []
    pipeline.transformer.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    plain, once = gradients(), len(calls)
    assert checkpoint_gradients(task) == ["WanTransformer3DModel"]
    again = gradients()
    assert once == 1 and len(calls) == 3  # a second time in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and any(a.any() for a in plain)
    task.patch.remove()


def test_a_reference_is_not_recorded_while_activations_are_recomputed(tiny_wan, tmp_path, capsys):
    command = ["reference", "--model", str(tiny_wan), "--folder", str(tmp_path), "--tokens", "100", "--rank", "2"]
    assert main("test", [*command, "--steps", "1", "--measure", "0", "--gradient-checkpointing"]) != 0
    assert "activation checkpointing" in capsys.readouterr().err


def test_what_can_be_trained_is_found_in_its_room():
    assert set(kinds()) == {
        "reference",
        "agent",
        "bias",
        "heads",
        "keys",
        "layer_router",
        "layers",
        "mixture_of_heads",
        "motion_boxes",
        "cross_modal_context",
    }
    for name, kind in kinds().items():
        assert (
            kind.name == name
            and kind.families
            and issubclass(typing.get_type_hints(kind.build, vars(sys.modules[kind.build.__module__]))["return"], Task)
        )


@pytest.mark.parametrize(
    "given, words",
    [
        (
            ["nope"],
            "method: got 'nope', allowed: agent, bias, cross_modal_context, heads, keys, layer_router, layers, ",
        ),
        (["agnet"], "did you mean 'agent'?"),
        (["agent", "--no-such"], "unrecognized arguments: --no-such"),
        (["agent", "--seed", "x"], "--seed: got 'x', allowed: a whole number"),
    ],
)
def test_wrong_arguments_are_one_line_as_everywhere(given, words, capsys):
    assert main("", given, "genkit train weights") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0] and "usage:" not in lines[0]


def test_motion_by_boxes_trains_goes_on_and_begins_from_a_run(tiny_wan, tmp_path):
    """The command, its checkpoint taken by a second run, and what comes out followed by the method."""
    command = ["motion_boxes", "--model", str(tiny_wan), "--tokens", "100", "--measure", "0", "--sample-minutes", "0"]
    command += ["--width", "4", "--rank", "3", "--lr", "0.02"]
    assert main("test", [*command, "--folder", str(tmp_path / "a"), "--steps", "2"]) == 0
    first = tmp_path / "a" / "weights" / "checkpoint.pt"
    more = ["--folder", str(tmp_path / "b"), "--steps", "3", "--start-from", str(first)]
    assert main("test", [*command, *more]) == 0
    assert torch.load(tmp_path / "b" / "weights" / "checkpoint.pt", weights_only=True)["step"] == 3
    method = trained("motion_boxes", tmp_path / "b" / "motion_boxes.safetensors")
    assert (method.width, method.rank) == (4, 3)
    with genkit.patch(_load(tiny_wan), method) as patch:
        weights = patch.weights.named_weights()
        assert all(table.any() for name, table in weights.items() if name.endswith("out"))


@pytest.mark.parametrize(
    ("name", "own"), [("reference", ["--rank", "2"]), ("motion_boxes", ["--rank", "3"]), ("agent", ["--layers", ":"])]
)
def test_a_run_begins_with_a_file_of_weights_and_trains_in_bfloat16(name, own, tiny_wan, tmp_path, capsys):
    """What a run wrote is taken by one on other weights of the model; products in bfloat16 serve every task."""
    command = [name, *own, "--model", str(tiny_wan), "--tokens", "100", "--measure", "0", "--sample-minutes", "0"]
    assert main("test", [*command, "--folder", str(tmp_path / "a"), "--steps", "3", "--lr", "0.02"]) == 0
    first = tmp_path / "a" / f"{name}.safetensors"
    more = ["--start-from", str(first), "--steps", "1", "--lr", "1e-12", "--mixed-precision", "bf16"]
    assert main("test", [*command, "--folder", str(tmp_path / "b"), *more]) == 0
    then, found = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in "ab")
    assert then.keys() == found.keys() and any(table.any() for table in then.values())
    assert all(torch.allclose(then[key], found[key], atol=1e-6) for key in then)
    capsys.readouterr()
    first.write_bytes(first.read_bytes()[:99])
    assert main("test", [*command, "--folder", str(tmp_path / "c"), *more]) == 1
    assert str(first) in capsys.readouterr().err and not (tmp_path / "c" / "weights" / "checkpoint.pt").exists()


def test_references_of_pictures_are_trained_in_bfloat16(tiny_sd, tmp_path):
    command = ["reference", "--model", str(tiny_sd), "--folder", str(tmp_path), "--tokens", "128", "--rank", "2"]
    command += ["--steps", "1", "--measure", "0", "--sample-minutes", "0", "--mixed-precision", "bf16"]
    assert main("test", command) == 0


def test_boxes_of_the_pool_are_where_the_object_is(tiny_wan):
    """What is told lies around what is drawn, of free paths and the world's motions; captions name the object."""
    pool = BoxPool(_load(tiny_wan).vae, np.random.default_rng(0))
    size, rng, silent = ClipSize(5, 96, 96), np.random.default_rng(1), 0
    for _ in range(20):
        scene, clip, boxes, _ = pool._show(size)
        for frame, (left, top, right, bottom) in zip(clip, np.array(boxes) * 96, strict=True):
            rows, columns = np.nonzero((frame != frame[0, 0]).any(-1))
            assert left - 2 <= columns.min() and columns.max() <= right + 1  # tips of triangles are drawn longer
            assert top - 2 <= rows.min() and rows.max() <= bottom + 1
    for sample in pool.draw(size, 8):
        text = pool.caption(sample, rng)
        silent += sample.silent
        assert sample.scene.actors[0].colour in text and sample.boxes.shape == (5, 4)
        assert not (
            sample.silent and any(word in text.split() for word in ("moves", "goes", "slides", "left", "right"))
        )
    assert 0 < silent < 8
