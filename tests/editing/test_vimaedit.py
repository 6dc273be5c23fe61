"""ViMAEdit on tiny models of the real classes: equal prompts change nothing, words limit where it is random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import genkit
from genkit.control.rows import Rows
from genkit.editing.vimaedit import ViMAEditPipeline
from genkit.editing.vimaedit.vision import vision
from genkit.errors import UnsupportedError, UsageError

USUAL = {"num_inference_steps": 5, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def tiny(tiny_sd):
    return ViMAEditPipeline.from_pipe(genkit.load(tiny_sd))


def _picture(size=16):
    return np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)


def _edit(pipe, *prompts, seed=0, size=16, **more):
    return pipe(_picture(size), *prompts, generator=torch.Generator().manual_seed(seed), **{**USUAL, **more})


def test_equal_prompts_give_the_picture_back(tiny):
    made = _edit(tiny, "a cat", "a cat", guidance_scale=1.0)
    right = tiny.model.encode(_picture())
    torch.testing.assert_close(made.latents, right, atol=2e-4, rtol=0)
    injected = _edit(tiny, "a cat", "a cat", guidance_scale=1.0, keep=1.0, keep_words_maps=1.0)
    torch.testing.assert_close(injected.latents, right, atol=2e-4, rtol=0)


def test_nothing_is_random_without_words_but_the_start(tiny):
    first = _edit(tiny, "a dog", "a cat")
    assert not first.details and not torch.equal(first.latents, _edit(tiny, "a dog", "a cat", seed=1).latents)
    assert torch.equal(first.latents, _edit(tiny, "a dog", "a cat", eta=0.0).latents)


def test_outside_the_region_of_the_words_the_source_stays(tiny):
    made = _edit(tiny, "a dog", "a cat", words=["dog"], source_words=["cat"])
    mask, critical = made.details["mask"], made.details["critical"]
    assert 0 < float(critical.mean()) <= float(mask.mean()) < 1 and bool((critical <= mask).all())
    outside = (mask == 0).expand_as(made.latents)
    torch.testing.assert_close(made.latents[outside], tiny.model.encode(_picture())[outside], atol=2e-4, rtol=0)
    assert not torch.equal(made.latents, _edit(tiny, "a dog", "a cat", words=["dog"], eta=0.0).latents)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_joint_attention_and_flows_find_the_region_too(tiny_flux, scale):
    flux = ViMAEditPipeline.from_pipe(genkit.load(tiny_flux))
    made = _edit(
        flux, "a red circle", "a blue circle", words=["red"], source_words=["blue"], size=32, guidance_scale=scale
    )
    assert made.frames.shape == (1, 32, 32, 3) and 0 < float(made.details["mask"].mean()) < 1


def test_bad_values_are_refused(tiny, tiny_wan):
    for bad in ({"keep": 1.5}, {"threshold": -1.0}, {"eta": 2.0}, {"num_inference_steps": 0}, {"words": ["horse"]}):
        with pytest.raises(UsageError):
            _edit(tiny, "a dog", "a cat", **bad)
    with pytest.raises(UnsupportedError, match="makes videos"):
        ViMAEditPipeline.from_pipe(genkit.load(tiny_wan))


def test_image_guidance_is_refused_without_an_adapter(tiny):
    with pytest.raises(UnsupportedError, match="load_ip_adapter"):
        _edit(tiny, "a dog", "a cat", image_guidance=True)
    with pytest.raises(UsageError, match="image_uncond"):
        vision(tiny.pipe, None, ("a", "b"), Rows.of("source", "target"), 0.4, "both", None)
