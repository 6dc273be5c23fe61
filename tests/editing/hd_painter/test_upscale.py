"""The super-resolution stage with a tiny upscaler of the real class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_clip

import genkit
from genkit.editing.hd_painter import HDPainterPipeline
from genkit.editing.hd_painter.upscale import factor_of, soft_mask, upscale
from genkit.errors import UnsupportedError, UsageError

torch.set_num_threads(1)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def upscaler():
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    text_encoder, tokenizer = tiny_clip()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=7, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32,
        norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), num_class_embeds=1000,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, sample_size=32, scaling_factor=0.08333,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction")
    pipe = StableDiffusionUpscalePipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, low, picture, inside):
    return upscale(
        pipe, low, picture, inside, "a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(3)
    )


def test_all_unknown_is_the_stock_upscaler(upscaler):
    low, own = noise(8, 16), upscaler.scheduler
    found = draw(upscaler, low, noise(32, 64), np.ones((32, 64), bool))
    stock = upscaler(
        "a cat", Image.fromarray(low), num_inference_steps=3, guidance_scale=7.5, noise_level=20,
        negative_prompt="", generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    assert np.array_equal(found, np.rint(stock * 255).astype(np.uint8)) and upscaler.scheduler is own


def test_all_known_is_the_picture_through_the_autoencoder(upscaler):
    picture, vae = noise(32, 64), upscaler.vae
    found = draw(upscaler, noise(8, 16, 1), picture, np.zeros((32, 64), bool))
    with torch.no_grad():
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0]
    wanted = ((back.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() <= 1


def test_the_mask_grows_and_has_a_soft_edge():
    inside = np.zeros((256, 256), bool)
    inside[112:144, 112:144] = True
    mask = soft_mask(inside, (64, 64))[0, 0]
    assert mask[32, 32] == 1 and mask[0, 0] == 0 and ((mask > 0) & (mask < 1)).any()
    assert (soft_mask(np.ones((32, 32), bool), (8, 8)) == 1).all()


def test_other_sizes_and_pipelines_are_refused(upscaler, tiny_sd):
    with pytest.raises(UsageError, match="64x32, 4 times"):
        draw(upscaler, noise(8, 16), noise(32, 32), np.ones((32, 32), bool))
    with pytest.raises(UnsupportedError, match="StableDiffusionUpscalePipeline"):
        factor_of(genkit.load(str(tiny_sd)))


def test_large_parts_are_made_small_and_drawn_large_and_the_rest_is_kept(upscaler, tiny_sd):
    pipe = HDPainterPipeline.from_pipe(genkit.load(str(tiny_sd)))
    picture = noise(70, 50)
    inside = np.zeros((70, 50), bool)
    inside[10:60, 10:40] = True
    given = {"num_inference_steps": 1, "painta": 0.0, "upscaler": upscaler, "generator": torch.Generator()}
    output = pipe(picture, inside, "a cat", longest=24, **given)
    assert np.array_equal(output.frames[0][~inside], picture[~inside]) and output.latents.shape == (1, 4, 12, 8)
    assert any("made at 16x24 and drawn 4 times larger" in line for line in output.told)
    with pytest.raises(UsageError, match="raise --longest"):
        pipe(picture, inside, "a cat", longest=16, **given)
    small = pipe(picture, inside, "a cat", longest=200, **given)
    assert not any("drawn" in line for line in small.told) and small.latents.shape == (1, 4, 36, 24)
