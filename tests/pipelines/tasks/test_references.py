"""``--reference``: what is read, how it is fitted, where it acts, and that a run with it is what one makes by hand."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.attention.reference.masks import box_mask
from genkit.attention.reference.store import References
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.media import read_image
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session, run
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.references.pictures import parse_box, parse_reference
from genkit.pipelines.tasks.references.record import record_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(PIXELS).save(path)
    return path


def ask(model, picture, **changes):
    fixed = {"prompt": "a red circle", "model": str(model), "seed": 1, "attention": "reference"}
    return GenerateSettings(**{**fixed, "reference": (str(picture),), **changes})


def by_hand(result, record=None, method=None):
    """The pipeline called with a result's settings."""
    told = result.settings
    pipeline = genkit.load(told.model)
    names = {"num_inference_steps": told.steps, "guidance_scale": told.guidance_scale}
    names |= {} if told.num_frames is None else {"num_frames": told.num_frames, "max_sequence_length": 16}
    schedule = told.schedule and genkit.Schedule(branches="cond")
    with genkit.patch(pipeline, method or genkit.Reference(), schedule=schedule) as patch:
        if record is not None:
            record(patch, pipeline)
        output = pipeline(
            prompt=told.prompt, height=told.height, width=told.width, output_type="np",
            generator=torch.Generator().manual_seed(1), **names,
        )  # fmt: skip
    images = output.frames[0] if told.num_frames else output.images
    return np.rint(images * 255).astype(np.uint8)


def test_a_video_follows_in_the_prompts_half(tiny_wan, picture):
    result = run(ask(tiny_wan, picture))
    assert result.settings.schedule == "branches=cond"
    assert result.settings.reference == (f"{picture.resolve()}@1",)
    assert len(result.record["made_with"]["reference_fingerprints"]) == 1
    expected = by_hand(result, lambda patch, pipe: record_pictures(patch, pipe, PIXELS[None], slots=16))
    assert np.array_equal(result.frames, expected)
    assert not np.array_equal(result.frames, by_hand(result))
    again = run(GenerateSettings.from_mappings(("the record", result.record["settings"])))
    assert np.array_equal(again.frames, result.frames)


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_a_picture_follows_in_the_prompts_half(tiny_sd, picture, scale):
    result = run(ask(tiny_sd, picture, height=64, width=64, steps=2, guidance_scale=scale))

    def record(patch, pipeline):
        record_pictures(patch, pipeline, PIXELS[None])
        References.of(patch.cache).set_parts((0, 1) if scale > 1 else ())

    assert result.settings.schedule is None
    assert np.array_equal(result.frames, by_hand(result, record))
    assert not np.array_equal(result.frames, by_hand(result))


def test_boxes_and_strengths_act(tiny_sd, picture):
    given = {"height": 64, "width": 64, "steps": 2, "guidance_scale": 3.0}
    boxed = run(ask(tiny_sd, picture, reference_box="0,0,0.5,1", attention_args={"outside": "0"}, **given))

    def record(patch, pipeline):
        record_pictures(patch, pipeline, PIXELS[None])
        References.of(patch.cache).set_parts((0, 1))
        References.of(patch.cache).set_boxes(box_mask([(0, 0, 0.5, 1)], 8, 8))

    everywhere = run(ask(tiny_sd, picture, **given))
    assert np.array_equal(boxed.frames, by_hand(boxed, record, genkit.Reference(outside=0.0)))
    assert not np.array_equal(boxed.frames, everywhere.frames)
    absent = run(ask(tiny_sd, f"{picture}@0", **given))
    assert np.array_equal(absent.frames, by_hand(absent))
    double = run(ask(tiny_sd, picture, **given).replace(reference=(str(picture), f"{picture}@0.5")))
    assert not np.array_equal(double.frames, everywhere.frames)
    assert len(double.settings.reference) == 2


def test_a_schedule_that_names_branches_is_kept(tiny_wan, picture):
    result = run(ask(tiny_wan, picture, schedule="branches=cond,uncond,steps=1:"))
    assert result.settings.schedule == "branches=cond,uncond,steps=1:"


def test_trained_weights_bring_their_settings_and_may_lie_in_the_models_folder(tiny_sd, picture, tmp_path):
    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    method = genkit.Reference(form="residual", rank=4)
    with genkit.patch(genkit.load(str(tiny_sd)), method) as patch:
        for value in patch.weights.parameters():
            torch.nn.init.normal_(value, std=0.3)
        patch.weights.save(folder / "follow.safetensors")
    given = {"height": 64, "width": 64, "steps": 1, "attention_args": {"weights": "follow.safetensors"}}
    session = Session(resolve(ask(folder, picture, **given)))
    arguments = session.request.settings.attention_args
    assert (arguments["form"], arguments["rank"]) == ("residual", 4)
    assert arguments["weights"] == str((folder / "follow.safetensors").resolve())
    trained = session.run().frames
    assert not np.array_equal(trained, run(ask(folder, picture, **(given | {"attention_args": {}}))).frames)
    with pytest.raises(ArtifactError, match="other.safetensors do not exist, and .* holds none of that name"):
        resolve(ask(folder, picture, attention_args={"weights": "other.safetensors"}))
    with pytest.raises(ArtifactError, match="holds no weights of genkit"):
        resolve(
            ask(folder, picture, attention_args={"weights": str(folder / "unet/diffusion_pytorch_model.safetensors")})
        )


def test_large_and_turned_pictures_are_fitted_and_told(tiny_sd, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    Image.fromarray(np.tile(PIXELS, (10, 20, 1))).save(path, exif=exif)
    assert read_image(path)[0].shape == (1, 640, 320, 3)
    made = resolve(ask(tiny_sd, path, height=64, width=64))
    assert made.inputs.pictures[0].picture.shape == (64, 32, 3)
    assert made.notes == ("the reference photo.jpg was resized from 320x640 to 32x64",)


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"reference": ()}, UsageError, "needs --reference FILE"),
        ({"reference": ("none.png",)}, ArtifactError, "none.png: it does not exist"),
        ({"reference": ("cat.png@-1",)}, UsageError, "--reference strength"),
        ({"reference": ("broken.png",)}, ArtifactError, "cannot read .*broken.png as an image"),
        ({"reference_box": "0,0,1"}, UsageError, "--reference-box: got '0,0,1', allowed: left,top,right,bottom"),
        ({"reference_box": "0.5,0,0.5,1"}, UsageError, "--reference-box"),
        ({"reference_box": "nan,0,1,1"}, UsageError, "--reference-box"),
    ],
)
def test_bad_references_are_told_before_loading(tiny_sd, picture, monkeypatch, changes, error, text):
    monkeypatch.chdir(picture.parent)
    (picture.parent / "broken.png").write_bytes(picture.read_bytes()[:40])
    with pytest.raises(error, match=text):
        resolve(ask(tiny_sd, picture, height=64, width=64, **changes))


def test_references_need_their_method_and_one_run(tiny_wan, picture):
    with pytest.raises(UsageError, match="--reference needs --attention reference"):
        ask(tiny_wan, picture, attention="radial")
    with pytest.raises(UsageError, match="--reference-box limits where the pictures of --reference apply; give"):
        GenerateSettings(prompt="a", reference_box="0,0,1,1")
    with pytest.raises(UsageError, match="--upscale and --reference exclude each other"):
        resolve(ask(tiny_wan, picture, upscale=2.0))


def test_other_families_are_refused_by_name(picture):
    from genkit.pipelines.tasks.references.record import check_family

    for name in ("FluxPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        with pytest.raises(UnsupportedError, match=f"got {name}, allowed: StableDiffusionPipeline.*, WanPipeline"):
            check_family(name)
    assert [check_family(name) for name in ("WanPipeline", "StableDiffusionPipeline")] == [None, None]


def test_texts_are_read(picture):
    assert parse_box("0.1, 0.2,0.5,1") == (0.1, 0.2, 0.5, 1.0)
    assert parse_reference(f"{picture}@0.5") == (picture, 0.5)
    odd = picture.with_name("a@2")
    odd.write_bytes(picture.read_bytes())
    assert parse_reference(str(odd)) == (odd, 1.0)


def test_a_box_goes_with_a_subject_that_is_shown_by_reference_attention(tiny_sd, picture):
    settings = GenerateSettings(
        prompt="a", model=str(tiny_sd), steps=2, height=64, width=64, subject=(str(picture),), attention="reference",
        reference_box="0,0,0.5,1",
    )  # fmt: skip
    found = resolve(settings).settings
    assert found.reference == (f"{picture}@1",) and found.reference_box == "0,0,0.5,1" and not found.subject
