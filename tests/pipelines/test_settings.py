"""One schema: the same names and checks for flags, configuration files and stored settings."""

from __future__ import annotations

import pytest

from genkit.errors import ArtifactError, UsageError
from genkit.pipelines.request import read_config
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.text import join_pairs, parse_pairs, slug


def test_pairs_keep_commas_inside_values():
    pairs = parse_pairs("size=3,5,5,stride=2,causal=true", "x")
    assert pairs == {"size": "3,5,5", "stride": "2", "causal": "true"}
    assert parse_pairs(join_pairs(pairs), "x") == pairs


@pytest.mark.parametrize("text", ["", "3", "a", "=3", "a=", "a=1,a=2", "1a=3", "a=1,=2"])
def test_pairs_that_are_none(text):
    with pytest.raises(UsageError):
        parse_pairs(text, "x")


def test_later_sources_win_and_none_means_not_given():
    merged = GenerateSettings.from_mappings(
        ("file", {"steps": 20, "height": 64, "guidance-scale": 4}), ("flags", {"steps": 5, "height": None})
    )
    assert (merged.steps, merged.height, merged.guidance_scale) == (5, 64, 4.0)


def test_another_method_drops_the_old_arguments_but_keeps_the_schedule():
    stored = {"attention": "radial", "attention_args": {"block_size": "64"}, "schedule": "steps=1:"}
    assert GenerateSettings.from_mappings(("f", stored)).attention_args == {"block_size": "64"}
    other = GenerateSettings.from_mappings(("f", stored), ("flags", {"attention": "neighborhood"}))
    assert (other.attention, other.attention_args, other.schedule) == ("neighborhood", {}, "steps=1:")
    same = GenerateSettings.from_mappings(("f", stored), ("flags", {"attention": "radial"}))
    assert same.attention_args == {"block_size": "64"}
    off = GenerateSettings.from_mappings(("f", stored), ("flags", {"attention": "none"}))
    assert (off.attention, off.attention_args, off.schedule) == (None, {}, None)


def test_stored_settings_read_back_equal():
    settings = GenerateSettings(
        prompt="x", seed=3, lora=("a.safetensors@0.5",), attention="radial", attention_args={"block_size": "64"}
    )
    assert GenerateSettings.from_mappings(("file", settings.to_dict())) == settings
    assert "output" not in settings.to_dict()


def test_dtype_short_names():
    assert GenerateSettings(dtype="bf16").dtype == "bfloat16"


@pytest.mark.parametrize(
    "values, text",
    [
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "steps in file: got"),
        ({"steps": -4}, "steps in file: got"),
        ({"steps": 2.5}, "steps in file"),
        ({"steps": "ten"}, "steps in file"),
        ({"steps": True}, "steps in file"),
        ({"num_frames": 0}, "num_frames in file: got"),
        ({"num_frames": -5}, "num_frames in file: got"),
        ({"height": -16}, "height in file: got"),
        ({"guidance_scale": -1}, "guidance_scale in file: got"),
        ({"guidance_scale": float("nan")}, "guidance_scale in file: got nan"),
        ({"fps": "0"}, "fps in file: got"),
        ({"fps": "fast"}, "fps in file: got"),
        ({"seed": -1}, "seed in file: got"),
        ({"seed": 2**63}, "2\\^63"),
        ({"dtype": "float64"}, "dtype in file: got"),
        ({"offload": "disk"}, "offload in file: got"),
        ({"vae_tiling": "yes"}, "vae_tiling in file"),
        ({"num_videos": 0}, "num_videos in file: got"),
        ({"attention": "radial", "recipe": "r"}, "exclude each other"),
        ({"attention_args": "a=1"}, "needs --attention"),
        ({"schedule": "steps=1:"}, "needs --attention"),
        ({"backend": "cpu"}, "needs --attention"),
        ({"prompt": ["a"]}, "prompt in file"),
        ({"lora": [1]}, "lora in file"),
    ],
)
def test_wrong_values_name_the_setting(values, text):
    with pytest.raises(UsageError, match=text):
        GenerateSettings.from_mappings(("file", values))


def test_config_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("prompt: a cat\nsteps: 4\nfps: 23.976\nattention: radial\nschedule: {steps: '1:', layers: 0}\n")
    settings = GenerateSettings.from_mappings((str(path), read_config(path)))
    assert (settings.fps, settings.schedule) == ("23.976", "steps=1:,layers=0")
    path.write_text('{"steps": 7}')
    assert read_config(path) == {"steps": 7}
    path.write_text("a: [1")
    with pytest.raises(ArtifactError, match="line"):
        read_config(path)
    path.write_text("- 1\n")
    with pytest.raises(UsageError, match="names and values"):
        read_config(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        read_config(tmp_path / "none.yaml")


def test_slugs_are_short_file_names():
    assert slug("A red circle, moves RIGHT!") == "a-red-circle-moves-right"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("!!!") == "clip"
    assert len(slug("word " * 10_000).encode()) <= 48
    assert len(slug("圆" * 500).encode()) <= 48


def test_a_whole_number_for_a_setting_with_a_fraction_is_stored_as_one_with_a_fraction():
    """Given, filled in or read back from a record: the record is the same."""
    made = GenerateSettings(prompt="a", guidance_scale=2)
    assert type(made.guidance_scale) is type(made.replace(guidance_scale=3).guidance_scale) is float
