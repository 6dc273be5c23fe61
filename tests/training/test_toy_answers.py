"""The decoder's training on what a denoiser answers: the way back from a level, and what is trained."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch

from genkit.families.training.objectives import Flow, Table
from genkit.models import shipped
from genkit.training.toys.image import run as image_run
from genkit.training.toys.image.model import ToyImage
from genkit.training.toys.shared.answers import Decoder, answers_loss, denoised
from genkit.training.toys.shared.picture_answers import picture_answers
from genkit.training.toys.shared.starts import begin_from_weights
from genkit.training.toys.video.answers import ANSWERS, draw_clips

KEPT = torch.linspace(0.999, 0.0, 1000)


@pytest.mark.parametrize("objective", [Flow(), Table(KEPT, "v_prediction"), Table(KEPT, "epsilon")], ids=str)
@pytest.mark.parametrize("fresh", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("guidance", [None, 4.0])
def test_a_denoiser_that_knows_the_truth_brings_it_back(objective, fresh, guidance):
    clean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    seen = []

    def answer(noisy, level):
        seen.append(float(level[0]))
        truth = clean.repeat(len(noisy) // 2, 1, 1, 1)
        signal, spread = objective.parts(level, noisy)
        noise = (noisy - signal * truth) / spread
        return objective.noised(truth, noise, level)[1]

    generator = torch.Generator().manual_seed(2)
    found = denoised(answer, objective, clean, 0.6, generator, shift=3.0, guidance=guidance, fresh=fresh)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    assert len(seen) >= 2 and seen[0] == pytest.approx(0.6) and seen == sorted(seen, reverse=True)


def test_hard_clips_and_their_spots_are_drawn():
    drawn = draw_clips(np.random.default_rng(0))
    count, frames, height, width, _ = drawn.pixels.shape
    assert count == len(drawn.texts) == len(drawn.spots) == 3 and frames in (9, 17, 25)
    assert (drawn.spots > -13).all() and (drawn.spots < np.array([height, width]) + 13).all()
    assert ANSWERS.cell * ANSWERS.side <= min(height, width)


@pytest.fixture(scope="module")
def toy():
    model = ToyImage()
    begin_from_weights("toy-image", model)
    return model.eval().requires_grad_(False)


def test_only_the_decoder_learns(toy):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(shipped()["toy-image"] / "vae").eval().requires_grad_(False)
    answers = replace(picture_answers(1.0, 4.0, 0.95, (0.15, 0.3)), side=8)
    module = Decoder(vae, answers.decode)
    loss_at = answers_loss(toy, vae, answers, seed=0)
    seen = set()
    for step in range(6):
        loss, figures = loss_at(module, step, 0.0)
        [(name, value)] = figures.items()
        seen.add(name)
        assert 10 < value < 60 and torch.isfinite(loss)
    assert len(seen) >= 2
    loss.backward()
    learned = {name.split(".")[1] for name, value in module.named_parameters() if value.grad is not None}
    assert learned == {"decoder", "post_quant_conv"}
    assert not any(value.requires_grad for value in vae.parameters())


@pytest.mark.slow
def test_the_stage_alone_mends_the_decoder_of_a_model(tmp_path):
    parser = argparse.ArgumentParser()
    image_run.MAKING.add_arguments(parser)
    given = ["--folder", str(tmp_path), "--minutes", "0.01", "--tokens", "100", "--weights", "toy-image"]
    for stage in ("answers", "assemble"):
        image_run.MAKING.run(parser.parse_args([*given, "--stage", stage]))
    made, old = tmp_path / "model", shipped()["toy-image"]
    name = "diffusion_pytorch_model.safetensors"
    assert (made / "vae" / name).read_bytes() != (old / "vae" / name).read_bytes()
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "unet" / name) for folder in (made, old))
    assert all(torch.equal(ours[key].float(), theirs[key].float()) for key in theirs)
    told = (made / "training.json").read_text()
    assert '"answers"' in told and '"steps"' in told
