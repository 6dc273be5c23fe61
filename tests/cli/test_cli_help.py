"""What ``--help`` says about a setting."""

import dataclasses

import pytest

from genkit.cli.options import _help
from genkit.training.lora.settings import LoraSettings

FIELDS = {field.name: field for field in dataclasses.fields(LoraSettings)}


@pytest.mark.parametrize(
    ("name", "end"),
    [("seed", "Default: 0."), ("min_level", "Default: 0.0."), ("rank", "Default: 16."), ("aspect_buckets", "True.")],
)
def test_help_tells_a_default_also_when_it_is_zero(name, end):
    assert _help(FIELDS[name]).endswith(end)


@pytest.mark.parametrize("name", ["minutes", "upscale", "validation_prompts"])
def test_help_tells_no_default_of_what_is_off_or_left_open(name):
    assert "Default" not in _help(FIELDS[name])


def test_help_of_training_offers_no_attention_of_a_lora_to_sample_with():
    assert "--lora" not in _help(FIELDS["attention"])
