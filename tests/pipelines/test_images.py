"""A model that makes images: the same settings and checks, read from the pipeline's class."""

from __future__ import annotations

import numpy as np
import pytest

from genkit import media
from genkit.errors import UsageError
from genkit.pipelines.jobs import expand
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(scope="module")
def folder(tiny_sd):
    return tiny_sd


def ask(folder, **changes):
    return GenerateSettings(**{"prompt": "a red ball", "model": str(folder), "seed": 1, "steps": 2, **changes})


def test_an_image_with_its_size_in_the_settings(folder, tmp_path):
    made = resolve(ask(folder))
    assert str(expand(made, ["a red ball"])[0][1]) == "a-red-ball-1.png"
    result = Session(made).run()
    result.write(tmp_path / "ball.png")
    back = media.read_media(tmp_path / "ball.png")
    assert np.array_equal(back.frames, result.frames)
    assert result.frames.shape == (1, 16, 16, 3) and result.fps is None
    settings = back.settings["settings"]
    assert (settings["height"], settings["width"], settings["num_frames"]) == (16, 16, None)
    again = Session(resolve(GenerateSettings.from_mappings(("file", settings)))).run()
    assert np.array_equal(again.frames, result.frames)


def test_a_method_runs_in_the_unet(folder):
    asked = ask(folder, attention="neighborhood", attention_args={"size": "1x3x3"})
    report = Session(resolve(asked)).run().report
    assert report["ran"] > 0
    assert {site["role"] for site in report["sites"]} == {"self"}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"num_frames": 5}, "takes no num_frames"),
        ({"fps": "8"}, "makes images"),
        ({"output": "ball.mp4"}, "makes single pictures"),
        ({"max_sequence_length": 5}, "takes no max_sequence_length"),
        ({"height": 20}, "multiples of 8"),
    ],
)
def test_what_an_image_model_does_not_take_is_told(folder, changes, text):
    with pytest.raises(UsageError, match=text):
        resolve(ask(folder, **changes))


def test_a_long_prompt_is_told_with_the_encoders_limit(folder):
    with pytest.raises(UsageError, match="the model reads 77"):
        Session(resolve(ask(folder, prompt="long " * 80))).run()
