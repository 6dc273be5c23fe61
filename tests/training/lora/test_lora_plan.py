"""A LoRA run before it starts: what a dry run tells, and what is refused without reading weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genkit.cli.main import main
from genkit.cli.train import layer_lines
from genkit.errors import GenkitError
from genkit.media.files import write_media
from genkit.pipelines.model import Model
from genkit.pipelines.skeleton import skeleton
from genkit.training.lora import estimate as estimating
from genkit.training.lora import plan as planning
from genkit.training.lora import samples
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.settings import LoraSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three clips of 5 frames of 32 x 32 with two captions."""
    folder = tmp_path_factory.mktemp("data")
    for index in range(3):
        write_media(folder / f"{index}.mp4", np.full((5, 32, 32, 3), 60 * index, np.uint8), 8)
        (folder / f"{index}.txt").write_text(f"a red circle {index % 2}")
    return folder


@pytest.fixture
def given(tiny_wan, data, tmp_path):
    """Settings that a plan can be made of."""
    return {
        "model": str(tiny_wan), "data": str(data), "output": str(tmp_path / "out"), "resolution": "32x32",
        "num_frames": 5, "max_train_steps": 6, "rank": 2, "train_batch_size": 2,
    }  # fmt: skip


def plan(given, **more):
    return LoraPlan.of(LoraSettings.from_mappings(("lora.yaml", {**given, **more})))


@pytest.fixture
def no_weights(monkeypatch):
    """Nothing may read a tensor from a file."""
    import safetensors.torch
    from diffusers.models import model_loading_utils

    def refuse(*args, **more):
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    monkeypatch.setattr(model_loading_utils, "load_state_dict", refuse)


def test_a_plan_tells_sizes_steps_targets_and_parameters_without_weights(given, no_weights, tmp_path):
    found = plan(given, held_out=1, gradient_accumulation_steps=2)
    assert list(found.buckets().values()) == [2]
    assert (found.component, found.loop.steps, found.precision) == ("transformer", 6, "no")
    assert found.epochs == 6 * 2 / found.batches.per_epoch
    assert all(path.startswith("blocks.") for path in found.targets)
    layers = [found.pipeline.transformer.get_submodule(path) for path in found.targets]
    assert found.trainable == sum(2 * (layer.in_features + layer.out_features) for layer in layers)
    assert not (tmp_path / "out").exists()


def test_the_outline_is_the_stock_pipeline_without_values(tiny_wan, no_weights):
    made = skeleton(Model.of(tiny_wan, "tiny"))
    assert type(made).__name__ == "WanPipeline"
    assert {value.device.type for value in made.transformer.parameters()} == {"meta"}
    assert made.tokenizer("a red circle").input_ids


def test_a_dry_run_prints_everything_and_writes_nothing(given, capsys, no_weights, tmp_path):
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more = ["--attention", "neighborhood", "--attention-args", "size=1x3x3", "--dry-run"]
    assert main(["train", "lora", *flags, *more, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["samples"], told["captions"], told["steps"]) == (3, 3, 2, 6)
    assert told["trained"]["blocks.*.attn1.to_q"] == 2
    assert 0 < told["attention"]["computed"] < 1
    memory = told["memory"]
    assert memory["training"] == pytest.approx(
        sum(memory[name] for name in ("weights", "adapter", "activations", "overhead"))
    )
    assert told["activations"]["with gradient checkpointing"] < told["activations"]["without"]
    assert told["flops_per_step"] > 0
    assert not (tmp_path / "out").exists()
    assert main(["train", "lora", *flags, *more]) == 0
    text = capsys.readouterr().out
    for words in ("3 files, 3 samples", "6 steps", "trained:", "neighborhood", "memory (estimated", "arithmetic:"):
        assert words in text


def test_steps_that_were_timed_are_told(given, capsys):
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "lora", *flags, "--dry-run", "--measure", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["measured"]
    assert told["seconds"] == pytest.approx(6 * told["seconds_per_step"]) and told["memory"] > 1e8


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model": "toy-vide"}, "did you mean 'toy-video'"),
        ({"model": "./absent"}, "does not exist"),
        ({"component": "transformer_2"}, "allowed: transformer"),
        ({"target_modules": ["to_qq"]}, "names no layer"),
        ({"target_modules": ["blocks\\.9\\..*"]}, "names no layer"),
        ({"target_modules": ["to_q"], "exclude_modules": ["to_q"]}, "leaves nothing"),
        ({"optimizer": "adamv"}, "adamw"),
        ({"optimizer_args": {"bettas": "0.9"}}, "bettas"),
        ({"lr_warmup_steps": 6}, "must be below the 6 steps"),
        ({"resolution": "33x32"}, "multiples of 16"),
        ({"num_frames": 6}, "num_frames"),
        ({"attention": "neighbourhood"}, "did you mean 'neighborhood'"),
        ({"attention": "neighborhood", "attention_args": {"sizes": "3"}}, "size"),
        ({"attention": "neighborhood", "schedule": "layers=9"}, "layers"),
        ({"attention": "reference"}, "not for training a LoRA"),
        ({"attention": "cross_modal_context"}, "audio_to_video"),
        ({"attention": "neighborhood", "backend": "fast"}, "fast"),
        ({"recipe": "absent"}, "absent"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"dtype": "float16"}, "float16 needs a GPU"),
        ({"device": "cuda:99"}, "cuda"),
        ({"offload": "model"}, "needs a GPU"),
        ({"quantization": "bitsandbytes_4bit"}, "bitsandbytes"),
        ({"snr_gamma": 5.0}, "snr_gamma"),
        ({"noise_offset": 0.1}, "noise_offset"),
        ({"audio_weight": 2.0}, "makes no sound"),
        ({"missing_audio": "refuse"}, "makes no sound"),
        ({"resume_from_checkpoint": "absent"}, "absent"),
        ({"data": "absent"}, "absent"),
        ({"init_lora": "absent"}, "LoRA absent does not exist"),
        ({"rank_pattern": {"to_q": 10**9}}, "at most 65536"),
        ({"output": "x" * 300}, "File name too long"),
        ({"held_out": 3}, "held_out"),
        ({"fps": "0"}, "fps"),
        ({"masks": "absent"}, "absent"),
        ({"guidance": 3.5}, "--guidance has no effect"),
        ({"max_sequence_length": 10**6}, "allowed: up to 4096; 512 are usual"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)) + str(next(iter(value.values())))[:12],
)
def test_what_cannot_be_done_is_refused_before_weights_are_read(given, values, words, no_weights):
    with pytest.raises(GenkitError) as found:
        plan(given, **values)
    assert words in str(found.value) and "\n" not in str(found.value)


def test_a_folder_of_other_files_is_left_alone(given, tmp_path):
    output = Path(given["output"])
    output.mkdir()
    (output / "thesis.doc").write_text("years of work")
    with pytest.raises(GenkitError, match="holds other files"):
        plan(given)
    output = tmp_path / "file"
    output.write_text("x")
    with pytest.raises(GenkitError, match="is a file"):
        plan({**given, "output": str(output)})
    assert output.read_text() == "x"


@pytest.mark.parametrize("name", ["output", "cache_dir"])
def test_a_folder_that_a_run_writes_is_never_inside_its_data(given, data, name, no_weights):
    with pytest.raises(GenkitError, match="is in the data folder .* give a folder beside it"):
        plan(given, **{name: str(data / "made")})


def test_the_cache_must_be_a_folder(given, tmp_path, no_weights):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GenkitError, match="--cache-dir .* is a file; give a folder"):
        plan(given, cache_dir=str(tmp_path / "file"))


def test_the_home_folder_is_meant_by_its_sign_in_files_too(given, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = LoraSettings.from_mappings(("lora.yaml", {**given, "output": "~/runs", "cache_dir": "~/cache"}))
    assert (settings.output, settings.cache_dir) == (str(tmp_path / "runs"), str(tmp_path / "cache"))


def test_checkpoints_of_an_earlier_run_are_told_before_weights_are_read(given, no_weights):
    (Path(given["output"]) / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(GenkitError, match="holds checkpoint-3 of an earlier run; --resume-from-checkpoint latest"):
        plan(given)


def test_a_model_without_a_record_is_refused_with_what_is_missing(given, tiny_wan, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_wan, other)
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanVideoToVideoPipeline"}))
    with pytest.raises(GenkitError, match="WanVideoToVideoPipeline cannot be trained"):
        plan({**given, "model": str(other)})


def test_a_disk_without_room_is_told_before_the_run(given, monkeypatch):
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(GenkitError, match="checkpoints need .* MB, and 0 MB are free"):
        plan(given)


def test_the_hub_needs_a_login(given, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(GenkitError, match="hf auth login"):
        plan(given, push_to_hub=True)


def test_latest_of_nothing_begins_and_says_so(given):
    assert any("begins at 0" in line for line in plan(given, resume_from_checkpoint="latest").notes())


def test_a_script_refuses_models_of_another_kind(given, capsys):
    code = main(
        ["train", "lora", "--kind", "image", "--model", given["model"], "--data", "a", "-o", "b", "--minutes", "1"]
    )
    assert code == 2 and "makes video, not image" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_tells_the_memory_it_took_beside_what_was_estimated(given):
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "genkit", "train", "lora", *flags, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    told = json.loads(done.stdout)
    assert Path(told["file"]).is_file()
    assert told["memory"]["used"] == pytest.approx(told["memory"]["estimated"], rel=0.2)
    assert "memory: about" in done.stderr


def test_a_model_that_does_not_run_without_values_is_trained_all_the_same(given, monkeypatch, capsys):
    def refuse(subject):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(estimating, "_estimated", refuse)
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "lora", *flags, "--dry-run", "--json"]) == 0
    caught = capsys.readouterr()
    assert json.loads(caught.out)["memory"] is None
    assert "cannot be estimated: without values it does not run (no meta kernel)" in caught.err


def test_text_lengths_and_embedded_guidance_have_no_effect_on_a_unet(given, tiny_sd, tmp_path, no_weights):
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_media(folder / "a.png", np.zeros((1, 64, 64, 3), np.uint8), None)
    (folder / "a.txt").write_text("a red circle")
    more = {"model": str(tiny_sd), "data": str(folder), "resolution": "64", "num_frames": None}
    assert plan(given, **more).estimate().memory.peak > 0
    for values, words in (
        ({"max_sequence_length": 512}, "StableDiffusionPipeline always reads 77 tokens"),
        ({"guidance": 3.5}, "is told no guidance scale"),
        ({"resolution": None}, "tells no usual size"),
    ):
        with pytest.raises(GenkitError, match=words):
            plan(given, **{**more, **values})


def test_embedded_guidance_is_taken_by_models_that_have_it(given, tmp_path, no_weights):
    from tiny_flux import build_tiny_flux

    folder = tmp_path / "pictures"
    folder.mkdir()
    write_media(folder / "a.png", np.zeros((1, 64, 64, 3), np.uint8), None)
    (folder / "a.txt").write_text("a red circle")
    more = {"data": str(folder), "resolution": "64", "num_frames": None, "guidance": 3.5}
    for embeds in (True, False):
        model = str(build_tiny_flux(tmp_path / f"flux-{embeds}", guidance_embeds=embeds))
        if embeds:
            assert plan(given, model=model, **more).options.guidance == 3.5
        else:
            with pytest.raises(GenkitError, match="--guidance has no effect"):
                plan(given, model=model, **more)


def test_a_lora_of_another_shape_to_begin_with_is_told_without_advice_that_training_lacks(given, tmp_path):
    import torch

    from genkit.lora.facts import Facts
    from genkit.lora.save import save_lora

    found = plan(given)
    shapes = {path: found.pipeline.transformer.get_submodule(path).weight.shape for path in found.targets}

    def written(name, rank=2, left=(), wider=0):
        weights = {
            path: (torch.ones(rank, columns + (wider if number == 0 else 0)), torch.ones(rows, rank), 1.0)
            for number, (path, (rows, columns)) in enumerate(shapes.items())
            if path not in left
        }
        return str(save_lora(tmp_path / f"{name}.safetensors", {"transformer": weights}, Facts(family="Wan")))

    plan(given, init_lora=written("fitting"))
    for name, words, changes in (
        ("rank", "has rank 3, here 2; give the same rank", {"rank": 3}),
        ("layers", "layers? differs? from those that are trained", {"left": found.targets[:1]}),
        ("shape", "it maps", {"wider": 1}),
    ):
        with pytest.raises(GenkitError, match=words) as told:
            plan(given, init_lora=written(name, **changes))
        assert "--lora-partial" not in str(told.value)


def test_words_that_captions_teach_are_told_and_no_slips_of_the_pen(given, data, tmp_path, capsys, no_weights):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "0.txt").write_text("a red Zorb")  # the others say a 0 or 1, which is no word of the model either
    given = {**given, "data": str(folder)}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "lora", *flags, "--dry-run"]) == 0
    assert "new words: 0, 1, zorb\n" in capsys.readouterr().out
    prompts = {"validation_prompts": ["a green zorb", "a zorbb"], "validation_num_inference_steps": 2}
    settings = LoraSettings.from_mappings(("lora.yaml", {**given, **prompts}))
    made = LoraPlan.of(settings)
    request, asked = samples.ask(settings, made.model, made.device, made.data.every)
    told = [request.read(each.settings).told for each in asked]
    assert told[0] == () and "zorbb" in told[1][0]


def test_long_lists_of_layers_are_summed_up_by_their_ends():
    kinds = ("down_blocks.*.attentions.*.transformer_blocks.*.", "mid_block.attentions.*.transformer_blocks.*.")
    ends = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "ff.net.*.proj")
    lines = list(layer_lines({kind + end: 3 for kind in kinds for end in ends}))
    assert lines[0] == "  ...attn1.to_q: 6 in 2 kinds of blocks" and len(lines) == len(ends)
    assert lines[-1] == "  ...ff.net.*.proj: 6 in 2 kinds of blocks"
    assert list(layer_lines({"blocks.*.attn1.to_q": 2})) == ["  blocks.*.attn1.to_q: 2"]
    assert list(layer_lines({f"blocks.*.part{number}": 1 for number in range(20)}))[-1] == (
        "  and 8 more kinds; --json lists all"
    )


def test_how_far_the_checks_are_is_told_and_notices_are_no_warnings(given, data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "notes.md").write_text("nothing")
    given = {**given, "data": str(folder), "max_train_steps": 1}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "lora", *flags]) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = ("loading libraries", "checking settings", "reading files: 3 of 3", "estimating", "loading the weights")
    places = [next(number for number, line in enumerate(lines) if f"genkit: {step}" in line) for step in steps]
    assert places == sorted(places)
    unused = [line for line in lines if "notes.md" in line]
    assert unused and not any("warning" in line for line in unused)
