"""The decoder's training on what a denoiser answers: the way back from a level, and what is trained."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch

from genkit.families.training.objectives import Flow, Table
from genkit.models import shipped
from genkit.training.data.pixels import as_tensor
from genkit.training.toys.av.answers import sounding_answers
from genkit.training.toys.av.model import OBJECTIVE, ToyAv
from genkit.training.toys.image import run as image_run
from genkit.training.toys.image.model import ToyImage
from genkit.training.toys.shared import picture_answers, picture_vae
from genkit.training.toys.shared.answers import Decoder, answers_loss, denoised
from genkit.training.toys.shared.starts import begin_from_weights
from genkit.training.toys.video import vae as video_vae
from genkit.training.toys.video.answers import ANSWERS, draw_clips
from genkit.world.vocabulary import BACKGROUNDS

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


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: picture_vae.draw_crops(rng, 12, 48),
        lambda rng: picture_answers.draw_pictures(rng).pixels,
        lambda rng: video_vae.draw_clips(rng, 8, 1, 96, 0.3)[:, 0],
        lambda rng: draw_clips(rng).pixels[:, 0],
    ],
    ids=["toy-image, toy-dit: autoencoder", "their answers", "toy-video: autoencoder", "its answers"],
)
def test_autoencoders_see_every_background_that_denoisers_are_trained_on(draw):
    """Colours that a decoder never saw come out gray, with halos around things."""
    rng, corners = np.random.default_rng(0), set()
    for _ in range(60):
        corners |= {tuple(map(int, pixels[0, 0])) for pixels in draw(rng)}
        if corners >= set(BACKGROUNDS.values()):
            return
    raise AssertionError(f"never shown: {[name for name, rgb in BACKGROUNDS.items() if rgb not in corners]}")


def test_guidance_is_rescaled_as_diffusers_does():
    from diffusers.pipelines.ltx2.pipeline_ltx2 import rescale_noise_cfg

    generator = torch.Generator().manual_seed(0)
    asked, free = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    objective = Flow()
    latents = torch.randn(2, 3, 4, generator=generator)
    noisy = []

    def answer(twice, level):
        noisy.append(twice[:2])
        return (twice - torch.cat([asked, free])) / level.view(-1, 1, 1)

    found = denoised(answer, objective, latents, 0.1, torch.Generator().manual_seed(1), guidance=4.0, rescale=0.7)
    expected = rescale_noise_cfg(free + 4.0 * (asked - free), asked, 0.7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def sounding():
    model = ToyAv()
    begin_from_weights("toy-av", model)
    return model.eval().requires_grad_(False)


def test_the_decoder_of_toy_av_learns_beside_the_sound_that_belongs_to_a_clip(sounding):
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video

    folder = shipped()["toy-av"]
    vae, audio_vae = (
        kind.from_pretrained(folder / part, dtype=torch.float32).eval().requires_grad_(False)
        for kind, part in ((AutoencoderKLLTX2Video, "vae"), (AutoencoderKLLTX2Audio, "audio_vae"))
    )
    answers = sounding_answers(audio_vae, 4.0, 4.0, 0.7)
    drawn = answers.draw(np.random.default_rng(3))
    assert len(drawn.asked(True)) == 6 and drawn.asked(True)[3:] == [""] * 3
    clean = answers.encode(vae, as_tensor(drawn.pixels)).float()
    assert answers.cell * clean.shape[-1] == drawn.pixels.shape[-2] and answers.side <= clean.shape[-1]
    level = torch.full((3,), 0.3)
    noisy, velocity = OBJECTIVE.noised(
        clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), level
    )
    with torch.no_grad():
        told = answers.ask(sounding, drawn, False)(noisy, level)
    assert (told - velocity).square().mean() < 0.5 * velocity.square().mean()

    module = Decoder(vae, answers.decode)
    loss, figures = answers_loss(sounding, vae, answers, seed=0)(module, 1, 0.0)
    [value] = figures.values()
    assert 10 < value < 60
    loss.backward()
    learned = {name.split(".")[1] for name, value in module.named_parameters() if value.grad is not None}
    assert learned == {"decoder"}


@pytest.fixture(scope="module")
def toy():
    model = ToyImage()
    begin_from_weights("toy-image", model)
    return model.eval().requires_grad_(False)


def test_only_the_decoder_learns(toy):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(shipped()["toy-image"] / "vae").eval().requires_grad_(False)
    answers = replace(picture_answers.picture_answers(1.0, 4.0, 0.95, (0.15, 0.3)), side=8)
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
