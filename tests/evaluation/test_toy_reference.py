"""Following a reference, as measured: truth is right, other clips are right by chance, the benchmark runs."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

import genkit
from benchmarks import toy_reference
from genkit import media
from genkit.attention.registry import trained
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_picture import PictureRequest
from genkit.evaluation.toy_reference import PICTURE_ATTRIBUTES, draw_cases, generate_cases, judge_cases
from genkit.pipelines.tasks.references.record import record_pictures
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Placement
from genkit.world.render import render_clip

REQUEST = ClipRequest(9, 128, 128, steps=1, batch=2, max_sequence_length=16)


def test_true_clips_are_right_and_others_by_chance():
    cases = draw_cases("train", 24, REQUEST, seed=5)
    clips = np.stack([render_clip(case.scene, case.tracks, 128, 128) for case in cases])
    truth = judge_cases(cases, clips).right
    assert truth["reference"] == truth["colour"] == truth["nearest shape"] == truth["background"] == 1
    others = judge_cases(cases, np.roll(clips, 7, axis=0)).right
    assert others["colour"] < 0.4 and others["nearest shape"] < 0.6 and others["reference"] < 0.25
    again = draw_cases("train", 24, REQUEST, seed=5)
    assert [case.prompt for case in again] == [case.prompt for case in cases]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(again, cases, strict=True))


def test_true_pictures_are_right_and_others_by_chance():
    request = PictureRequest(64, 64)
    cases = draw_cases("train", 24, request, seed=5)
    pictures = []
    for case in cases:
        where = Placement(*(row[:, 0] for row in (case.tracks.x, case.tracks.y, case.tracks.radius)))
        pictures.append(render_picture(case.scene, where, 64, 64))
    truth = judge_cases(cases, np.stack(pictures)).right
    assert set(truth.values()) == {1.0} and set(truth) == set(PICTURE_ATTRIBUTES)
    others = judge_cases(cases, np.roll(np.stack(pictures), 7, axis=0)).right
    assert others["colour"] < 0.4 and others["shape"] < 0.6 and others["reference"] < 0.25
    assert cases[0].picture.shape == (64, 64, 3)


def _weights(folder, path):
    """Trained-looking weights of a tiny model."""
    pipeline = genkit.load(str(folder))
    draw = torch.Generator().manual_seed(0)
    with genkit.patch(pipeline, genkit.Reference(form="residual", rank=2)) as patch, torch.no_grad():
        for parameter in patch.weights.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        return patch.weights.save(path)


def test_every_clip_follows_its_own_picture(tiny_wan, tmp_path):
    pipeline = genkit.load(str(tiny_wan))
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(5, 64, 64, steps=1, batch=2, max_sequence_length=16)
    cases = draw_cases("train", 3, request, seed=1)
    method = trained("reference", _weights(tiny_wan, tmp_path / "reference.safetensors"))
    with genkit.patch(pipeline, method) as patch:
        clips, _ = generate_cases(pipeline, cases, request, 7, patch)
        single, _ = generate_cases(pipeline, cases[1:2], request, 8, patch)
        boxed, _ = generate_cases(pipeline, cases[1:2], request, 8, patch, boxes=True)
    plain, _ = generate_cases(pipeline, cases, request, 7)
    assert clips.shape == (3, 5, 64, 64, 3)
    assert np.abs(clips[1].astype(int) - single[0]).max() <= 2  # the same in a batch of two and alone
    assert not np.array_equal(clips, plain) and not np.array_equal(boxed, single)


def test_the_benchmark_has_a_row_per_way_and_split(tiny_wan, tmp_path):
    weights = _weights(tiny_wan, tmp_path / "reference.safetensors")
    parser = argparse.ArgumentParser()
    toy_reference.add_arguments(parser)
    given = ["--model", str(tiny_wan), "--prompts", "4", "--size", "5x64x64", "--steps", "1", "--output", str(tmp_path)]
    assert toy_reference.run(parser.parse_args([*given, "--weights", str(weights)])) == 0
    rows = json.loads((tmp_path / "toy_reference.json").read_text())["rows"]
    assert len(rows) == 14 and {row["samples"] for row in rows} == {3, 1}
    assert "| trained, boxes told | seen |" in (tmp_path / "toy_reference.md").read_text()
    assert toy_reference.run(parser.parse_args(given)) == 0
    text = (tmp_path / "toy_reference.md").read_text()
    assert "No trained weights were given" in text and "| trained |" not in text


def test_every_picture_follows_its_own_reference(tiny_sd, tmp_path):
    pipeline = genkit.load(str(tiny_sd))
    pipeline.set_progress_bar_config(disable=True)
    request = PictureRequest(64, 64, steps=1, batch=2)
    cases = draw_cases("train", 3, request, seed=1)
    method = trained("reference", _weights(tiny_sd, tmp_path / "reference.safetensors"))
    with genkit.patch(pipeline, method) as patch:
        pictures, _ = generate_cases(pipeline, cases, request, 7, patch)
        single, _ = generate_cases(pipeline, cases[1:2], request, 8, patch)
        boxed, _ = generate_cases(pipeline, cases[1:2], request, 8, patch, boxes=True)
    plain, _ = generate_cases(pipeline, cases, request, 7)
    assert pictures.shape == (3, 64, 64, 3)
    assert np.abs(pictures[1].astype(int) - single[0]).max() <= 2
    assert not np.array_equal(pictures, plain) and not np.array_equal(boxed, single)


def test_the_benchmark_measures_models_for_pictures(tiny_sd, tmp_path):
    weights = _weights(tiny_sd, tmp_path / "reference.safetensors")
    parser = argparse.ArgumentParser()
    toy_reference.add_arguments(parser)
    given = ["--model", str(tiny_sd), "--prompts", "4", "--steps", "1", "--output", str(tmp_path)]
    given += ["--weights", str(weights)]
    assert toy_reference.run(parser.parse_args([*given, "--size", "1x64x64"])) == 0
    data = json.loads((tmp_path / "toy_reference_picture.json").read_text())
    assert data["size"] == "64x64" and len(data["rows"]) == 14 and "texture" in data["rows"][0]
    sheet = media.read_media(tmp_path / "toy_reference_picture.png").frames[0]
    # The references and seven ways, three seen cases side by side, titles above.
    assert (
        sheet.shape[0] > 8 * 64
        and sheet.shape[1] > 3 * 64
        and "(toy_reference_picture.png)" in (tmp_path / "toy_reference_picture.md").read_text()
    )
    with pytest.raises(SystemExit, match="5 frames"):
        toy_reference.run(parser.parse_args([*given, "--size", "5x64x64"]))


def test_pictures_are_references_of_known_families_only(tiny_sd, tmp_path):
    pipeline = genkit.load(str(tiny_sd))
    picture = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    with genkit.patch(pipeline, genkit.Reference()) as patch:
        with pytest.raises(UsageError, match="uint8"):
            record_pictures(patch, pipeline, picture[0])
        type(pipeline).__name__, name = "FluxPipeline", type(pipeline).__name__
        try:
            with pytest.raises(UnsupportedError, match="got FluxPipeline, allowed: StableDiffusionPipeline"):
                record_pictures(patch, pipeline, picture)
        finally:
            type(pipeline).__name__ = name


def test_weights_of_another_method_are_refused(tmp_path):
    import tiny

    case = tiny.build("wan")
    method = genkit.Agent(form="trained", lattice=(1, 2, 2), lines=(1, 2, 2))
    with genkit.patch(case.model, method) as patch:
        path = patch.weights.save(tmp_path / "agent.safetensors")
    with pytest.raises(ArtifactError, match="weights of agent, not of reference"):
        trained("reference", path)
