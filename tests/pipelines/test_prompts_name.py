"""What a model never had to guess in training is asked for before anything is made."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from genkit.errors import ArtifactError
from genkit.models.sidecar import read_sidecar
from genkit.pipelines.resolve import resolve
from genkit.pipelines.settings import GenerateSettings
from genkit.world.caption import caption
from genkit.world.scene import draw_scene

GROUNDS = ["background", "on a lawn", "on white", "on a white background"]


@pytest.fixture
def asking(tiny_wan, tmp_path):
    """A model that was never trained without a background."""
    copy = shutil.copytree(tiny_wan, tmp_path / "copy")
    (copy / "genkit.json").write_text(json.dumps({"prompts_name": {"background": GROUNDS}}))
    return copy


def told(prompt, model):
    return [
        line for line in resolve(GenerateSettings(prompt=prompt, model=str(model))).prompts.told if "names no" in line
    ]


@pytest.mark.parametrize(
    ("prompt", "missing"),
    [
        ("a red circle moves right", True),
        ("a green ball bounces", True),
        ("a red circle on the left", True),
        ("a red circle moves right on a blue background", False),
        ("on a pink background a cross spins", False),
        ("Red square moves down, WHITE background", False),
        ("a video of an orange ball on white", False),
        ("", False),
    ],
)
def test_a_prompt_without_a_background_is_warned_of_with_an_example(asking, prompt, missing):
    lines = told(prompt, asking)
    assert len(lines) == missing
    if missing:
        assert lines[0].startswith("the prompt names no background") and "such as 'on a white background'" in lines[0]


def test_other_models_expect_nothing_and_a_broken_list_is_refused(tiny_wan, tmp_path):
    assert told("a red circle", tiny_wan) == told("a green ball bounces twice", "toy-av") == []
    assert told("a red circle moves right", "toy-video") == []  # it was trained on such prompts, too
    copy = shutil.copytree(tiny_wan, tmp_path / "copy")
    (copy / "genkit.json").write_text(json.dumps({"prompts_name": {"place": ["in a forest"]}}))
    assert "names no place" in told("a red circle", copy)[0] and told("a fox in a forest", copy) == []
    (copy / "genkit.json").write_text(json.dumps({"prompts_name": ["background"]}))
    with pytest.raises(ArtifactError, match="prompts_name"):
        read_sidecar(copy)


def test_captions_of_clips_in_training_leave_the_background_out_now_and_then():
    rng = np.random.default_rng(0)
    texts = [caption(draw_scene(rng, two_share=0.5), rng) for _ in range(900)]
    without = sum(" on " not in text and "background" not in text for text in texts)
    assert 60 < without < 140, "a ninth"
    assert "background" in caption(draw_scene(rng))
