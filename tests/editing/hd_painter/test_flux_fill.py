"""FLUX Fill reads mask and picture in the channels of its tokens: as the stock pipeline hands them over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import genkit
from genkit.editing.hd_painter import HDPainterPipeline
from genkit.errors import UnsupportedError
from genkit.families.training.lookup import training_of

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe(tiny_flux):
    """A FluxFillPipeline of tiny parts: 4 latent channels and 2 x 2 pixels a latent, so 4 x (4 + 4 + 4) a token."""
    from diffusers import FluxFillPipeline, FluxTransformer2DModel

    stock = genkit.load(str(tiny_flux))
    torch.manual_seed(2)
    config = {**stock.transformer.config, "in_channels": 48, "out_channels": 16, "guidance_embeds": True}
    transformer = FluxTransformer2DModel.from_config(config).eval()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    parts = {
        name: part for name, part in stock.components.items() if name not in ("image_encoder", "feature_extractor")
    }
    filler = FluxFillPipeline(**{**parts, "transformer": transformer})
    filler.set_progress_bar_config(disable=True)
    return filler


def handed(pipe, run):
    """Keyword arguments of the denoiser's calls while something runs."""
    found = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args, named: found.append(named), with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return found


def test_the_denoiser_is_told_what_the_stock_pipeline_tells_it(pipe, monkeypatch):
    # The stock pipeline draws the known part's latents from the posterior, genkit takes its mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda posterior, generator=None: posterior.mode())
    rng = np.random.default_rng(0)
    picture, inside = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), np.zeros((16, 24), bool)
    inside[3:12, 5:14] = True
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    stock = handed(
        pipe,
        lambda: pipe(
            "a red cat", image=Image.fromarray(picture), mask_image=Image.fromarray(inside), height=16, width=24,
            num_inference_steps=2, guidance_scale=30.0, latents=pipe._pack_latents(noise, 1, 4, 8, 12),
            output_type="latent", max_sequence_length=16,
        ),
    )  # fmt: skip
    edit = HDPainterPipeline.from_pipe(pipe)
    edit.model.draw = lambda like, generator: noise
    own = handed(
        pipe,
        lambda: edit(
            picture, inside, "a red cat", num_inference_steps=2, guidance_scale=30.0, painta=0.0, context=24,
            max_sequence_length=16,
        ),
    )  # fmt: skip
    assert len(own) == len(stock) == 2 and own[0]["hidden_states"].shape == (1, 24, 48)
    for here, there in zip(own, stock, strict=True):
        for name in ("hidden_states", "timestep", "guidance", "img_ids", "txt_ids", "encoder_hidden_states"):
            torch.testing.assert_close(here[name], there[name], rtol=1e-4, atol=2e-4, msg=name)


def test_it_paints_inside_the_mask_alone_and_painta_acts(pipe):
    picture, inside = np.full((16, 16, 3), 90, np.uint8), np.zeros((16, 16), bool)
    inside[4:12, 4:12] = True
    made = [
        HDPainterPipeline.from_pipe(pipe)(
            picture, inside, "a red cat", num_inference_steps=2, painta=share, max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
        )
        for share in (0.0, 1.0)
    ]  # fmt: skip
    assert all(np.array_equal(output.frames[0][~inside], picture[~inside]) for output in made)
    assert not torch.equal(made[0].latents, made[1].latents)
    with pytest.raises(UnsupportedError, match="RASG"):
        HDPainterPipeline.from_pipe(pipe)(picture, inside, "a red cat", rasg=0.1)


def test_what_reads_a_mask_is_neither_edited_without_one_nor_trained(pipe):
    for editor in (genkit.InfEditPipeline, genkit.FlowEditPipeline):
        with pytest.raises(UnsupportedError, match="genkit inpaint"):
            editor.from_pipe(pipe)
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        training_of(pipe)


def test_the_command_takes_it(pipe, tmp_path):
    from genkit.pipelines.session import run
    from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

    pipe.save_pretrained(tmp_path / "fill")
    picture, mask = np.full((16, 16, 3), 90, np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    made = run(
        InpaintSettings(
            image=str(tmp_path / "picture.png"), mask=str(tmp_path / "mask.png"), prompt="a red cat", steps=1, seed=1,
            model=str(tmp_path / "fill"), max_sequence_length=16,
        )
    )  # fmt: skip
    assert made.settings.resample == 1 and made.settings.guidance_scale == 30
    assert np.array_equal(made.frames[0][mask == 0], picture[mask == 0])
