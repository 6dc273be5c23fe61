"""Real image prompt adapters of Diffusers, tiny: who has a picture is read, who has none runs as without them."""

import functools

import numpy as np
import pytest
import tiny_pipelines
import torch
from tiny_edits import PICTURE, SOURCE, STEPS, TARGET, consistent, infedit, inpaint, seeded, vimaedit
from tiny_ip_adapter import add_ip_adapters

import genkit
from genkit.editing.shared.image_prompt import adapters
from genkit.errors import UnsupportedError
from genkit.pipelines.load import load

OTHER = PICTURE[::-1].copy()


@pytest.fixture(scope="module")
def with_adapters(tiny_sd, tmp_path_factory):
    """(kind, how many adapters, of tokens or not) -> pipeline, made once."""

    @functools.cache
    def made(kind, count=1, tokens=False):
        pipe = tiny_pipelines.stable_diffusion_xl() if kind == "sdxl" else load(tiny_sd, torch.float32, "cpu")
        pipe.set_progress_bar_config(disable=True)
        add_ip_adapters(pipe, tmp_path_factory.mktemp("adapters"), count, tokens=tokens)
        assert adapters(pipe) == count
        return pipe

    return made


def restyled(pipe, content=PICTURE, **more):
    return genkit.AttenSTPipeline.from_pipe(pipe)(content, OTHER, resample=0, **STEPS, **more).latents


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("tokens", [False, True], ids=["embedding", "tokens"])
def test_style_reads_both_pictures_or_the_style_alone(kind, tokens, with_adapters, pipe_of):
    one, two = with_adapters(kind, 1, tokens), with_adapters(kind, 2, tokens)
    assert not torch.equal(restyled(one), restyled(one, style_scale=0.0))
    assert torch.equal(restyled(one), restyled(one, content_scale=0.0))
    both = restyled(two)
    assert not torch.equal(both, restyled(two, content_scale=0.0))
    assert not torch.equal(both, restyled(two, style_scale=0.0))
    silent = restyled(two, content_scale=0.0, style_scale=0.0)
    torch.testing.assert_close(silent, restyled(pipe_of(kind)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_image_guidance_moves_the_edit_and_scale_0_does_not(kind, with_adapters, pipe_of):
    def edited(pipe, **more):
        return genkit.ViMAEditPipeline.from_pipe(pipe)(PICTURE, TARGET, SOURCE, generator=seeded(), **STEPS, **more)

    pipe, tower = with_adapters(kind), {"image_guidance": True, "clip_text": tiny_pipelines.clip(8, 8)}
    plain = edited(pipe_of(kind)).latents
    torch.testing.assert_close(edited(pipe, image_scale=0.0, **tower).latents, plain, atol=1e-5, rtol=0)
    published, zero = edited(pipe, **tower).latents, edited(pipe, image_uncond="zero", **tower).latents
    assert not torch.equal(published, plain) and not torch.equal(published, zero)
    with pytest.raises(UnsupportedError, match="reads the tokens"):
        edited(with_adapters(kind, 1, True), **tower)
    with pytest.raises(UnsupportedError, match="has 2 loaded"):
        edited(with_adapters(kind, 2), **tower)


def test_without_a_text_tower_of_its_width_image_guidance_says_what_is_needed(with_adapters):
    with pytest.raises(UnsupportedError, match="clip_text"):
        genkit.ViMAEditPipeline.from_pipe(with_adapters("sd"))(PICTURE, TARGET, SOURCE, image_guidance=True, **STEPS)


@pytest.mark.parametrize("call", [infedit, vimaedit, inpaint, consistent], ids=lambda call: call.__name__)
def test_methods_that_have_no_picture_to_tell_run_as_without_adapters(call, with_adapters, pipe_of):
    pipe = with_adapters("sd", 2)
    scales = [getattr(each, "scale", None) for each in pipe.unet.attn_processors.values()]
    heard, plain = call(pipe).frames, call(pipe_of("sd")).frames
    assert np.abs(heard.astype(int) - plain).max() <= 1
    assert scales == [getattr(each, "scale", None) for each in pipe.unet.attn_processors.values()]


def test_adapters_of_transformers_are_refused(tiny_flux):
    pipe = load(tiny_flux, torch.float32, "cpu")
    pipe.transformer.encoder_hid_proj = torch.nn.Identity()  # what load_ip_adapter sets there
    with pytest.raises(UnsupportedError, match="unload_ip_adapter"):
        genkit.AttenSTPipeline.from_pipe(pipe)
