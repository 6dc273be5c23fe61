"""The configurations in examples/lora are what the command takes, and their attention can be trained through."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genkit.pipelines.attention import Attention
from genkit.training.lora.attention import check_trainable
from genkit.training.lora.settings import LoraSettings

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "examples" / "lora").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_is_taken_as_it_stands(path):
    settings = LoraSettings.from_mappings((path.name, yaml.safe_load(path.read_text())))
    settings.check()
    attention = Attention.of(settings)
    if attention is not None:
        check_trainable(attention)
        assert attention.parts


def test_there_is_an_example_of_every_recipe_for_training():
    used = {LoraSettings.from_mappings((path.name, yaml.safe_load(path.read_text()))).recipe for path in CONFIGS}
    assert {"toy-video-radial-long", "wan2.1-1.3b-radial-long", "wan2.1-1.3b-groups-train"} <= used
