"""Making the image models from nothing in seconds: every stage runs, resumes and gives a real pipeline."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from diffusers import StableDiffusionInpaintPipeline

import genkit
from genkit.evaluation.toy_picture import (
    PictureRequest,
    draw_picture_prompts,
    generate_pictures,
    judge_pictures,
    use_lcm,
)
from genkit.models.registry import verify_checksums
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.toys.dit import run as toy_dit_run
from genkit.training.toys.image import run as toy_image_run

SCRIPTS = Path(__file__).parents[2] / "scripts"


def make(making, folder: Path, *more: str) -> Path:
    parser = argparse.ArgumentParser()
    making.add_arguments(parser)
    given = ["--folder", str(folder), "--minutes", "0.01", "--tokens", "100", "--sample-minutes", "0", *more]
    making.run(parser.parse_args(given))
    return folder


def _inpainted(pipeline) -> bool:
    """Whether a pipeline takes a picture and a mask and gives a picture."""
    flat = np.full((1, 64, 64, 3), 0.5, dtype=np.float32)
    mask = np.zeros((1, 64, 64, 1), dtype=np.float32)
    mask[:, :, 32:] = 1.0
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    image = pipeline("a red circle", image=flat, mask_image=mask, **call).images
    return image.shape == (1, 64, 64, 3) and bool(np.isfinite(image).all())


@pytest.fixture(scope="module")
def image_run(tmp_path_factory) -> Path:
    return make(toy_image_run.MAKING, tmp_path_factory.mktemp("runs") / "image")


@pytest.mark.slow
def test_toy_image_is_made_loaded_and_judged(image_run):
    model = image_run / "model"
    assert verify_checksums(model) == ("ok", [])
    assert sum(path.stat().st_size for path in model.rglob("*")) < 20e6
    facts = json.loads((model / "training.json").read_text())
    assert facts["steps"] >= 1 and facts["vae"]["steps"] >= 1 and facts["decoder"]["steps"] >= 1
    assert facts["answers"]["steps"] >= 1
    card = (model / "README.md").read_text()
    assert f"({facts['steps']} steps of the UNet" in card and "{" not in card and "(7.1 million" in card
    pipeline = genkit.load(str(model))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    request = PictureRequest.of_model(str(model), 64, 64, 2)
    assert request.call == {"guidance_scale": 4.0, "eta": 0.95}
    prompts = draw_picture_prompts("held_out_pair", 2, seed=1, actors=1, side=64)
    images, seconds = generate_pictures(pipeline, [text for _, text in prompts], request)
    assert images.shape == (2, 64, 64, 3) and images.dtype == "uint8" and seconds > 0
    again, _ = generate_pictures(pipeline, [text for _, text in prompts], request)
    assert (images == again).all()
    result, single = judge_pictures([picture for picture, _ in prompts], images)
    assert result.clips == 2 == len(single) and 0 <= result.right["all"] <= 1
    assert _inpainted(StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False))
    use_lcm(pipeline)
    quick, _ = generate_pictures(pipeline, [text for _, text in prompts], request)
    assert quick.shape == images.shape and (quick != images).any()


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(image_run):
    steps = {name: load_checkpoint(image_run / name / "checkpoint.pt")["step"] for name in ("vae", "denoiser")}
    make(toy_image_run.MAKING, image_run, "--stage", "vae")
    make(toy_image_run.MAKING, image_run, "--stage", "denoiser")
    assert steps == {name: load_checkpoint(image_run / name / "checkpoint.pt")["step"] for name in steps}


@pytest.mark.slow
def test_the_inpainting_form_goes_on_from_the_plain_one(image_run, tmp_path):
    source = image_run / "denoiser" / "checkpoint.pt"
    make(toy_image_run.MAKING, tmp_path, "--inpaint", "--vae", str(image_run), "--start-from", str(source))
    pipeline = genkit.load(str(tmp_path / "model"))
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline" and pipeline.unet.config.in_channels == 9
    assert _inpainted(pipeline)
    assert json.loads((tmp_path / "model" / "training.json").read_text())["inpaint"] is True


@pytest.mark.slow
def test_toy_dit_is_made_and_generates_from_the_command_line(image_run, tmp_path):
    make(toy_dit_run.MAKING, tmp_path, "--vae", str(image_run), "--text-steps", "2")
    model = tmp_path / "model"
    assert sum(path.stat().st_size for path in model.rglob("*")) < 20e6
    command = [sys.executable, "-m", "genkit", "generate", "a striped blue square left of a small red circle"]
    size = ["--height", "64", "--width", "64", "--steps", "2", "--seed", "1"]
    output = tmp_path / "x.png"
    subprocess.run([*command, "--model", str(model), *size, "-o", str(output)], check=True, capture_output=True)
    assert iio.imread(output).shape == (64, 64, 3)
    settings = json.loads(output.with_name("x.png.json").read_text())
    assert "striped blue" in json.dumps(settings)


@pytest.mark.parametrize("name", ["train_toy_image.py", "train_toy_dit.py"])
def test_bad_options_are_one_line(name):
    result = subprocess.run([sys.executable, str(SCRIPTS / name), "--minutes", "0"], capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "--minutes: got '0', allowed: a number above 0" in line
