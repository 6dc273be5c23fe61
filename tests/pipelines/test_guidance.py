"""A guidance scale is never dropped: models without a guidance input are guided by a second, negative call."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_flux import build_tiny_flux

import genkit
from genkit.errors import GenkitError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {embeds: build_tiny_flux(place / f"tiny-flux-{embeds}", guidance_embeds=embeds) for embeds in (False, True)}


def ask(folder, **changes):
    more = {"steps": 2, "height": 16, "width": 16, "seed": 1, "max_sequence_length": 16}
    return GenerateSettings(**{"prompt": "a red circle", "model": str(folder), **more, **changes})


def direct(folder, **call):
    """The stock pipeline's picture for its own arguments."""
    import torch

    pipeline = genkit.load(str(folder))
    made = pipeline(
        prompt="a red circle", num_inference_steps=2, height=16, width=16, max_sequence_length=16, output_type="np",
        generator=torch.Generator("cpu").manual_seed(1), **call,
    )  # fmt: skip
    return (made.images * 255).round().astype(np.uint8)


def test_the_scale_becomes_true_guidance_and_says_so(folders):
    folder = folders[False]
    made = resolve(ask(folder, guidance_scale=4.0))
    assert (made.settings.guidance_scale, made.settings.negative_prompt) == (4.0, "")
    session = Session(made)
    guided = session.run()
    assert "true_cfg_scale" in session.warnings[0] and "empty negative prompt" in session.warnings[0]
    assert np.array_equal(guided.frames, direct(folder, true_cfg_scale=4.0, negative_prompt=""))
    plain = Session(resolve(ask(folder))).run()
    assert np.array_equal(plain.frames, direct(folder)) and not np.array_equal(plain.frames, guided.frames)
    # What is stored repeats the run, both times.
    for result in (guided, plain):
        again = resolve(GenerateSettings.from_mappings(("file", result.settings.to_dict()))).settings
        assert (again.guidance_scale, again.negative_prompt) == (
            result.settings.guidance_scale, result.settings.negative_prompt
        )  # fmt: skip


def test_what_is_left_open(folders):
    """Nobody asked for guidance: none. ``genkit.json`` asked: as it says. A negative prompt alone is told idle."""
    folder = folders[False]
    open_plan = resolve(ask(folder))
    assert (open_plan.settings.guidance_scale, open_plan.settings.negative_prompt) == (1.0, None)
    assert open_plan.notes == ()
    idle = resolve(ask(folder, negative_prompt="blue"))
    assert idle.settings.guidance_scale == 1.0 and "no effect" in idle.notes[0]
    named = resolve(ask(folder, negative_prompt="blue", guidance_scale=3.0))
    assert named.settings.negative_prompt == "blue" and "'blue'" in named.notes[0]
    for sidecar in ({"call": {"true_cfg_scale": 5.0}}, {"defaults": {"guidance_scale": 5.0}}):
        (folder / "genkit.json").write_text(json.dumps(sidecar))
        try:
            told = resolve(ask(folder)).settings
            assert (told.guidance_scale, told.negative_prompt) == (5.0, "")
            assert resolve(ask(folder, guidance_scale=1.0)).settings.guidance_scale == 1.0
        finally:
            (folder / "genkit.json").unlink()
    with pytest.raises(GenkitError, match="guidance"):
        ask(folder, guidance_scale=-1.0)


def test_a_model_with_a_guidance_input_keeps_it(folders):
    made = resolve(ask(folders[True], guidance_scale=4.0))
    assert (made.settings.guidance_scale, made.settings.negative_prompt, made.notes) == (4.0, None, ())
    arguments = Session(made).arguments(made.settings, "a red circle", None, None)
    assert arguments["guidance_scale"] == 4.0 and "true_cfg_scale" not in arguments
    assert resolve(ask(folders[True])).settings.guidance_scale == 3.5
    assert "once per step" in resolve(ask(folders[True], negative_prompt="blue")).notes[0]
