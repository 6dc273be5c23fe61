"""What `genkit train lora` takes: one schema for flags and file, rules between settings, names of other trainers."""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.training.data.source import DataSource, size_of
from genkit.training.lora.counterparts import NAMES, WITHOUT, counterpart
from genkit.training.lora.settings import LoraSettings

LEAST = {"model": "toy-video", "data": "clips", "output": "out", "max_train_steps": 10}
FILE, FLAGS = "lora.yaml", "the command line"


def made(**values):
    return LoraSettings.from_mappings((FILE, {**LEAST, **values}))


def refused(**values):
    with pytest.raises(UsageError) as found:
        made(**values)
    return str(found.value)


def test_file_and_flags_are_one_schema_and_flags_win():
    file = {**LEAST, "learning-rate": 1e-3, "num_frames": "9,17", "resolution": [96, "64x96"], "target_modules": "to_q"}
    settings = LoraSettings.from_mappings((FILE, file), (FLAGS, {"learning_rate": 2e-3, "num_frames": ["25"]}))
    assert (settings.learning_rate, settings.num_frames) == (2e-3, (25,))
    assert (settings.resolution, settings.target_modules) == (("96", "64x96"), ("to_q",))
    assert settings.data == (DataSource("clips"),)


def test_data_is_a_folder_a_toml_file_or_a_list_of_folders_with_settings():
    several = made(data=["a", {"path": "b", "num_repeats": 3, "weight": 0.5, "resolution": 128, "num-frames": 9}]).data
    assert several == (DataSource("a"), DataSource("b", 3, 0.5, resolution=("128",), num_frames=(9,)))
    assert made(data="sets.toml").data[0].is_toml
    assert "give it alone" in refused(data=["a", "sets.toml"])
    assert "did you mean 'num_repeats'" in refused(data=[{"path": "a", "num_repeat": 2}])
    assert "path" in refused(data=[{"num_repeats": 2}])
    assert "data in lora.yaml[1], weight" in refused(data=["a", {"path": "b", "weight": -1}])
    assert "a folder" in refused(data=3)
    assert "a folder" in refused(data=[" "])


def test_stored_settings_read_back_equal():
    settings = made(data=[{"path": "a", "num_repeats": 2}, "b"], num_frames=[9, 17], attention="radial")
    again = LoraSettings.from_mappings(("stored", settings.to_dict()), (FLAGS, {"output": "out"}))
    assert again == settings


def test_a_size_is_a_side_or_height_x_width():
    assert (size_of("512"), size_of("480x832")) == (512, (480, 832))
    for text in ("", "0", "x", "5x", "1x2x3", "-4", "4.5", "123456"):
        with pytest.raises(UsageError, match="HEIGHTxWIDTH"):
            size_of(text)


def test_a_later_budget_or_optimizer_replaces_the_earlier_one():
    file = {**LEAST, "optimizer": "prodigy", "optimizer_args": {"d_coef": 2}}
    settings = LoraSettings.from_mappings((FILE, file), (FLAGS, {"minutes": 5.0, "optimizer": "adamw"}))
    assert (settings.max_train_steps, settings.minutes, settings.optimizer_args) == (None, 5.0, {})
    same = LoraSettings.from_mappings((FILE, file), (FLAGS, {"optimizer": "prodigy"}))
    assert same.optimizer_args == {"d_coef": 2}


@pytest.mark.parametrize("missing", ["model", "data", "output", "max_train_steps"])
def test_what_is_needed_is_asked_for_by_name(missing):
    with pytest.raises(UsageError, match=f"--{missing.replace('_', '-')}"):
        LoraSettings.from_mappings((FILE, {key: value for key, value in LEAST.items() if key != missing}))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"rank": 0}, "rank in lora.yaml: got 0, allowed: a whole number from 1"),
        ({"rank": "16"}, "rank in lora.yaml: got '16', allowed: a whole number"),
        ({"rank": True}, "a whole number"),
        ({"learning_rate": 0}, "a number above 0"),
        ({"learning_rate": -1e-4}, "a number above 0"),
        ({"learning_rate": float("nan")}, "got nan, allowed: a number"),
        ({"learning_rate": 1e9}, "at most 100"),
        ({"minutes": 3}, "got '--max-train-steps and --minutes', allowed: one of"),
        ({"num_train_epochs": 3}, "one of --max-train-steps, --num-train-epochs, --minutes"),
        ({"max_train_steps": 0}, "a whole number from 1"),
        ({"lr_scheduler": "cosin"}, "did you mean 'cosine'?"),
        ({"report_to": "tensorbord"}, "did you mean 'tensorboard'?"),
        ({"mixed_precision": "fp8"}, "no, bf16, fp16"),
        ({"adapter": "loha"}, "lora, lokr"),
        ({"caption_dropout": 1.5}, "from 0 to 1"),
        ({"num_frames": 0}, "whole numbers from 1"),
        ({"num_frames": [9, 9]}, "each once"),
        ({"num_frames": 9.5}, "a whole number"),
        ({"resolution": "480x"}, "HEIGHTxWIDTH"),
        ({"min_level": 0.8, "max_level": 0.2}, "must be below"),
        ({"huber_delta": 0.2}, "--huber-delta has no effect without --loss-type huber"),
        ({"mode_scale": 1.0}, "--mode-scale has no effect without --timestep-sampling mode"),
        ({"logit_mean": 1.0, "timestep_sampling": "uniform"}, "--logit-mean has no effect with"),
        ({"lr_num_cycles": 2}, "without --lr-scheduler cosine_with_restarts"),
        ({"ema_decay": 0.9}, "without --use-ema"),
        ({"frame_stride": 4}, "without --frame-extraction slide"),
        ({"lokr_factor": 4}, "without --adapter lokr"),
        ({"use_dora": True, "adapter": "lokr"}, "lokr has none of it"),
        ({"use_dora": True, "quantization": "quanto"}, "leave --quantization out"),
        ({"quantization_args": {"a": "b"}}, "--quantization-args needs"),
        ({"hub_model_id": "a/b"}, "without --push-to-hub"),
        ({"unmasked_weight": 0.5}, "without --masks"),
        ({"validation_steps": 10}, "without --validation-prompts"),
        ({"validation_prompts": ["a", "b"], "validation_images": ["x.png"]}, "one for each"),
        ({"train_attention_weights": True}, "needs --attention"),
        ({"attention_args": "size=3"}, "needs --attention"),
        ({"target_modules": 3}, "a list"),
        ({"output": "a\0b"}, "NUL"),
    ],
)
def test_values_and_combinations_without_meaning_are_refused(values, words):
    assert words in refused(**values)


def test_a_setting_of_one_folder_makes_another_setting_meaningful():
    assert made(frame_stride=4, data=[{"path": "a", "frame_extraction": "slide"}]).frame_stride == 4
    assert made(held_out=2, validation_steps=5).validation_steps == 5


@pytest.mark.parametrize(
    "name, here",
    [
        ("network_dim", "rank"),
        ("network_alpha", "lora_alpha"),
        ("train.steps", "max_train_steps"),
        ("train.lr", "learning_rate"),
        ("unet_lr", "learning_rate"),
        ("save_every_n_steps", "checkpointing_steps"),
        ("save.max_step_saves_to_keep", "checkpoints_total_limit"),
        ("sample_prompts", "validation_prompts"),
        ("network.linear", "rank"),
        ("network.network_kwargs.only_if_contains", "target_modules"),
        ("discrete_flow_shift", "flow_shift"),
        ("--lora-rank", "rank"),
        ("micro_batch_size_per_gpu", "train_batch_size"),
        ("target_frames", "num_frames"),
        ("train.gradient_checkpointing", "gradient_checkpointing"),
    ],
)
def test_names_of_other_trainers_are_answered_with_their_counterpart(name, here):
    assert f" is {here} here" in counterpart(name, LoraSettings.field_names())


def test_every_counterpart_is_a_setting_and_no_setting_is_called_foreign():
    settings = set(LoraSettings.field_names())
    foreign = [name for names in (*NAMES.values(), *WITHOUT) for name in names.split()]
    assert set(NAMES) <= settings
    assert not settings & set(foreign)
    assert len(foreign) == len(set(foreign))


def test_all_foreign_names_of_a_file_are_told_at_once_those_in_sections_too():
    told = refused(train={"steps": 5, "lr": 1e-4}, network={"type": "lora", "linear": 16}, rnk=3, flip_aug=True)
    for words in ("'train.steps' is max_train_steps", "'train.lr' is learning_rate", "'network.linear' is rank"):
        assert words in told
    assert "'rnk' is no setting (did you mean rank?)" in told.replace("'rank'", "rank")
    assert "'flip_aug': samples are not changed" in told


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--network-dim", "8"], "'--network-dim' is rank here"),
        (["--ran", "8"], "--rank"),
        (["--rank", "x"], "--rank: got 'x', allowed: a whole number"),
        (["--learning-rate", "nan"], "--learning-rate: got 'nan', allowed: a number"),
        (["--model", "toy-video", "--output", "o"], "training needs --data"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["clips"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_code(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["train", "lora", *flags])
    lines = capsys.readouterr().err.splitlines()
    assert code == (1 if flags[0] == "--config" else 2)
    assert len(lines) == 1 and words in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, code, words",
    [
        ("- a\n- b\n", 2, "names and values"),
        ("a: [b\n", 1, "YAML"),
        ("# " + "x" * 300_000, 1, "large"),
        ("", 2, "training needs --model"),
        ("model: [toml\nx", 1, "TOML"),
        (
            "network_dim = 16\n[train]\nsteps = 3\n",
            2,
            "'network_dim' is rank here; 'train.steps' is max_train_steps here",
        ),
    ],
)
def test_a_configuration_that_is_none_is_refused(text, code, words, capsys, tmp_path):
    path = tmp_path / ("lora.toml" if "=" in text or "toml" in text else "lora.yaml")
    path.write_text(text)
    assert main(["train", "lora", "--config", str(path)]) == code
    assert words in capsys.readouterr().err


def test_settings_and_command_line_need_no_torch():
    code = "import sys, genkit.cli.main; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_setting_has_a_help_and_a_group():
    for field in dataclasses.fields(LoraSettings):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["group"] != "Generation", field.name


def test_the_page_of_all_settings_is_the_settings():
    script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "lora_settings_page.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/lora_settings_page.py"


def test_attention_auto_is_for_using_a_lora():
    with pytest.raises(UsageError, match="--attention auto takes the method from a LoRA that is used"):
        LoraSettings(model="m", data="d", output="o", max_train_steps=1, attention="auto")


def test_one_name_in_two_spellings_is_refused():
    given = {"model": "m", "data": "d", "output": "o", "max_train_steps": 1, "max-train-steps": 2}
    with pytest.raises(UsageError, match="max-train-steps in lora.yaml is written twice, with '-' and with '_'"):
        LoraSettings.from_mappings(("lora.yaml", given))
