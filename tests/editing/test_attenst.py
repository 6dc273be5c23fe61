"""AttenST on tiny models of the real classes: the style is taken over; a picture in its own manner comes back."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import genkit
from genkit.editing.attenst import AttenSTPipeline
from genkit.editing.attenst.layers import prompt_layers, style_layers
from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import family_of


def _pictures(size=16):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for _ in range(2)]


def _changed(one, other):
    return float(np.abs(one.frames.astype(int) - other.frames.astype(int)).mean())


@pytest.fixture(scope="module")
def tiny(tiny_sd):
    return AttenSTPipeline.from_pipe(genkit.load(tiny_sd))


def test_a_picture_in_its_own_manner_is_the_picture_up_to_the_inversion(tiny):
    content, _ = _pictures()
    usual = {"temperature": 1.0, "num_inference_steps": 4, "average_below": 0}
    right = tiny.model.encode(content)
    plain, exact = (tiny(content, content, resample=again, **usual).latents for again in (0, 8))
    assert float((exact - right).abs().max()) < 0.2 * float((plain - right).abs().max())
    other = tiny(content, content, keep=0.1, strength=1.0, resample=8, **usual).latents
    torch.testing.assert_close(other, exact, atol=5e-3, rtol=0)


def test_every_part_of_the_style_changes_the_result(tiny):
    content, style = _pictures()
    usual = {"keep": 0.75, "strength": 0.6, "temperature": 2.25, "num_inference_steps": 3, "resample": 1}
    first = tiny(content, style, **usual)
    again = tiny(content, style, **usual)
    assert np.array_equal(first.frames, again.frames)
    for change in ({"keep": 0.0}, {"strength": 0.0}, {"temperature": 1.0}):
        other = tiny(content, style, **usual | change)
        assert not torch.equal(first.latents, other.latents), change


def test_sizes_come_back_and_scaling_the_style_is_told(tiny):
    content, _ = _pictures()
    made = tiny(content[:13, :11], np.full((40, 20, 3), 90, np.uint8), num_inference_steps=2, resample=0)
    assert made.frames.shape == (1, 13, 11, 3)
    assert any("style of 20x40 is scaled" in line for line in made.told)


def test_guidance_takes_the_style_in_both_halves(tiny):
    content, style = _pictures()
    usual = {"num_inference_steps": 2, "resample": 0, "prompt": "a cat"}
    assert _changed(tiny(content, style, **usual), tiny(content, style, guidance_scale=5.0, **usual)) > 0


def test_progress_counts_the_way_there_and_back(tiny):
    content, style = _pictures()
    seen = []
    tiny(content, style, num_inference_steps=2, resample=0, progress=lambda *told: seen.append(told[:2]))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_model_is_left_as_it_was(tiny):
    content, style = _pictures()
    latents, text = torch.randn(1, 4, 8, 8), tiny.model.texts(["a"])
    before = tiny.model.predict(latents, 0.5, text)
    tiny(content, style, num_inference_steps=2, resample=0)
    assert torch.equal(before, tiny.model.predict(latents, 0.5, text)) and not genkit.patches(tiny.pipe)


def test_joint_attention_takes_the_style_too(tiny_flux):
    flux = AttenSTPipeline.from_pipe(genkit.load(tiny_flux))
    content, style = _pictures(32)
    usual = {"num_inference_steps": 2, "resample": 0, "strength": 0.0}
    own, other = flux(content, content, **usual), flux(content, style, **usual)
    assert own.frames.shape == (1, 32, 32, 3) and not torch.equal(own.latents, other.latents)


def test_bad_values_are_refused(tiny):
    content, style = _pictures()
    for bad in ({"keep": 1.5}, {"strength": -0.1}, {"temperature": 0.0}, {"resample": -1}, {"num_inference_steps": 0}):
        with pytest.raises(UsageError):
            tiny(content, style, **bad)
    with pytest.raises(UsageError, match="image"):
        tiny("content.png", style)
    with pytest.raises(UsageError, match="style_layers: got 'nowhere', allowed: .* such as .*attn"):
        tiny(content, style, layers="nowhere", num_inference_steps=1, resample=0)


def test_videos_are_refused(tiny_wan):
    with pytest.raises(UnsupportedError, match="makes videos"):
        AttenSTPipeline.from_pipe(genkit.load(tiny_wan))


def _skeleton(kind, **config):
    with torch.device("meta"):
        return kind(**config)


def test_the_published_layers_of_sdxl_are_found():
    from diffusers import UNet2DConditionModel

    unet = _skeleton(
        UNet2DConditionModel, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=32,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    family = family_of(unet)
    wanted = re.compile(style_layers(family, unet))
    chosen = [site.path for site in family.find_sites(unet) if site.role == "self" and wanted.search(site.path)]
    assert len(chosen) == 4 and all(re.match(r"up_blocks\.1\.attentions\.[12]\.", path) for path in chosen)
    content, style = prompt_layers(unet)
    assert re.search(content, "down_blocks.2.attentions.1.transformer_blocks.0.attn2.processor")
    assert not re.search(content, "down_blocks.2.attentions.0.transformer_blocks.0.attn2.processor")
    assert re.search(style, "unet.up_blocks.0.attentions.2.x") and not re.search(style, "up_blocks.0.attentions.0.x")
