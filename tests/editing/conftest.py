"""Tiny pipelines of every kind that editing works on, with stock schedulers."""

import functools

import pytest
import tiny_pipelines
import torch

from genkit.pipelines.load import load


@pytest.fixture(scope="package")
def pipe_of(tiny_sd, tiny_flux, tiny_wan):
    """Kind (sd, sdxl, lcm, flux, sd3, wan) -> pipeline, made once."""
    own = {
        "sdxl": tiny_pipelines.stable_diffusion_xl,
        "sd3": tiny_pipelines.stable_diffusion_3,
        "lcm": lambda: tiny_pipelines.latent_consistency(tiny_sd),
    }

    @functools.cache
    def made(kind):
        folders = {"sd": tiny_sd, "flux": tiny_flux, "wan": tiny_wan}
        pipe = own[kind]() if kind in own else load(folders[kind], torch.float32, "cpu")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made
